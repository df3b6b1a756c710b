"""Everything that reads what strangers may have written: whatever the bytes are, it gives a value or its error, in little memory.

Each decoder is fed with changed forms of something valid, which get further than random bytes. What broke decoders of this kind
elsewhere stays here as examples: `SEEDS`.
"""

import io
import json
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from legion_p2p.core import dagcbor
from legion_p2p.core.admission import as_text, from_text, make_token, open_token
from legion_p2p.core.announcement import Announcement, open_signed, sign
from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import decode_dataset, decode_file
from legion_p2p.core.evidence import KeptEvidence
from legion_p2p.core.gateway_packets import read_pcp_reply, read_pmp_reply
from legion_p2p.core.identity import Identity
from legion_p2p.core.igd import Url, read_answer, read_description
from legion_p2p.core.manifest import decode_base, decode_manifest, decode_shard
from legion_p2p.core.model_config import read_model_config
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec, SignedSpec, open_spec, sign_spec
from legion_p2p.core.wire import GetInput, Push, Update, decode_header, decode_request, encode
from legion_p2p.errors import LegionError
from legion_p2p.net import envelope as frames
from legion_p2p.observe.human import clean
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.car import read_car
from legion_p2p.store.evidence_file import EvidenceFile
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.tensor import codec
from legion_p2p.train.safetensors_file import open_safetensors
from tests.unit.test_receipts import WITHOUT, found

MEMBER = Identity(b"m" * 32)
N = 4096
REFUSALS = (LegionError, frames.UnknownVersion)
MAX_PEAK_BYTES = 4 << 20  # for inputs of some kilobytes: what they decode to is told apart from what they claim
CODECS = ("fp32", "int8", "int4", "int2", "sign", "gauss2", "topk64-2bit", "topk64-4bit")


def values() -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, N, dtype=torch.float32)


def payload_of(name: str, data: bytes) -> torch.Tensor:
    return codec.get(name).decode(data, N)


_FOLDER = tempfile.TemporaryDirectory(prefix="decoders-")  # gone with the process


def folder() -> Path:
    return Path(_FOLDER.name)


@cache
def store() -> BlockStore:
    return BlockStore(folder() / "blocks")


def on_disk(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        path = folder() / name
        path.write_bytes(data)
        return read(path)

    return decode


def read_tensors(path: Path) -> None:
    with open_safetensors(path) as file:
        for name in file.names:
            file.read(name)


def read_blocks(path: Path) -> None:
    with store().hold():
        read_car(store(), io.BytesIO(path.read_bytes()))


def spec_of(data: bytes) -> RunSpec:
    return open_spec(SignedSpec(data[64:], data[:64]))


_signed_spec = sign_spec(RunSpec("run", MEMBER.peer_id, (ParamSpec("w", (4, 4)),)), MEMBER)
_token = make_token(MEMBER, "run", MEMBER.peer_id, 2_000_000_000)
_cid = Cid.of(b"block")
_roots = dagcbor.encode({"roots": [], "version": 1})
_header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
_evidence = found(WITHOUT)
assert _evidence is not None

_SSDP = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: http://192.0.2.1:80/x.xml\r\n\r\n"
)

DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "request": (decode_request, encode(Push("run", 1, 2, 3, 4, 5, "int8", b"payload", b"s" * 64))),
    "request for inputs": (decode_request, encode(GetInput("run", 1, b"h" * 32, 4))),
    "evidence": (decode_request, encode(_evidence)),
    "update": (decode_request, encode(Update(encode(WITHOUT), b"s" * 64, b"payload"))),
    "update header": (decode_header, encode(WITHOUT)),
    "envelope": (frames.decode, b"\x93\x01\x02\x03"),
    "announcement": (open_signed, sign(Announcement(MEMBER.peer_id, "run", addresses=("/ip4/127.0.0.1/tcp/1",)), MEMBER)),
    "specification": (spec_of, _signed_spec.signature + _signed_spec.spec),
    "token": (open_token, _token),
    "token as text": (lambda data: from_text(data.decode(errors="replace")), as_text(_token).encode()),
    "CBOR": (dagcbor.decode, dagcbor.encode({"a": [1, -2, 1.5, None, True, "x", b"y", _cid], "b": {"c": {}}})),
    "manifest": (decode_manifest, dagcbor.encode({"version": 1, "run": "run", "shards": [_cid], "signature": b"s" * 64})),
    "stored shard": (decode_shard, dagcbor.encode({"version": 1, "shard": 0, "base": _cid, "log": [_cid]})),
    "base": (decode_base, dagcbor.encode({"version": 1, "shard": 0, "chunks": [_cid], "digest": b"d" * 32})),
    "data set": (decode_dataset, dagcbor.encode({"version": 1, "kind": "dataset", "files": [_cid], "dtype": "uint16"})),
    "file node": (decode_file, dagcbor.encode({"version": 1, "kind": "file", "leaves": b"l" * 32, "n_bytes": 5})),
    "CAR": (on_disk("x.car", read_blocks), bytes([len(_roots)]) + _roots),
    "safetensors": (on_disk("x.safetensors", read_tensors), struct.pack("<Q", len(_header)) + _header + bytes(8)),
    "kept evidence": (
        on_disk("peer.evidence", lambda path: EvidenceFile(path).load()),
        msgspec.msgpack.encode((KeptEvidence(_evidence, 1.7e9),)),
    ),
    "network key": (on_disk("lab.key", lambda path: load_network_key(str(path))), bytes(range(32)).hex().encode()),
    "model configuration": (
        lambda data: read_model_config(data.decode(errors="replace")), b'{"model_type": "llama", "hidden_size": 64}'
    ),
    "PCP reply": (lambda data: read_pcp_reply(data, b"n" * 12, 4710), bytes([2, 129]) + bytes(58)),
    "NAT-PMP reply": (lambda data: read_pmp_reply(data, 4710), bytes([0, 130]) + bytes(14)),
    "SSDP answer": (
        lambda data: read_answer(data, "192.0.2.1"), _SSDP
    ),
    "gateway description": (
        lambda data: read_description(data, Url("192.0.2.1", 80, "/x.xml")), b"<root><device><a>b</a></device></root>"
    ),
    **{f"codec {name}": (partial(payload_of, name), codec.get(name).encode(values())) for name in CODECS},
}  # fmt: skip

SEEDS: dict[str, tuple[bytes, ...]] = {
    "CBOR": (b"\x9f" * 2000, b"\xd8\x2a\x41\x00", b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xbf\x61a\x01\xff", b"\x5f\xff"),
    "safetensors": (
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100 << 20) + b"{}",
    ),
    "gateway description": (b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><root>&b;</root>',),
    "CAR": (b"\xff" * 10, b"\x80" * 9 + b"\x01"),
    "request": (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 3000, b"\xc6\xff\xff\xff\xff"),
}
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6)), max_size=4)


def changed(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """`data` with some bytes taken out and others put there."""
    for place, n_out, put in edits:
        at = int(place * len(data))
        data = data[:at] + put + data[at + n_out :]
    return data


def check(decode: Callable[[bytes], Any], data: bytes) -> None:
    tracemalloc.start()
    try:
        decode(data)
    except REFUSALS:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES, f"{peak} bytes for {len(data)}"


@pytest.mark.parametrize("name", DECODERS)
@given(edits=EDITS)
@example(edits=[(0.0, 10**9, b"")])
@settings(max_examples=60)
def test_whatever_arrives_is_read_or_refused(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    decode, valid = DECODERS[name]

    check(decode, changed(valid, edits))


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, kept in SEEDS.items() for data in kept])
def test_what_breaks_decoders_elsewhere_is_refused(name: str, data: bytes) -> None:
    check(DECODERS[name][0], data)


@pytest.mark.parametrize("name", [name for name in DECODERS if name.startswith("codec ")])
@given(data=st.binary(max_size=400))
@settings(max_examples=40)
def test_a_payload_decodes_to_finite_numbers_of_the_right_length_or_not_at_all(name: str, data: bytes) -> None:
    try:
        made = DECODERS[name][0](data)
    except LegionError:
        return
    assert made.shape == (N,) and made.dtype == torch.float32


@given(st.text(max_size=80))
@example("\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\u2066\r\n\x00")
def test_no_text_of_a_stranger_moves_the_cursor_of_a_terminal(text: str) -> None:
    shown = clean(text)

    assert all(char.isprintable() for char in shown), "no control character, and none that turns the direction of writing"
    assert not {"\x1b", "\x9b", "\u202e", "\u2066"} & set(shown)


def test_every_example_is_one_that_its_decoder_knows() -> None:
    """Or the changed forms would never get beyond the first check."""
    refused = set()
    for name, (decode, valid) in DECODERS.items():
        try:
            decode(valid)
        except REFUSALS:
            refused.add(name)

    unlike = {
        "manifest",
        "stored shard",
        "base",
        "data set",
        "file node",
        "envelope",
        "gateway description",
        "PCP reply",
        "SSDP answer",
    }
    assert refused <= unlike | {"NAT-PMP reply"}, refused
