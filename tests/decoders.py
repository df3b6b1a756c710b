"""What reads bytes that strangers may have written: each decoder with something valid for it to begin from.

tests/unit/test_decoders.py holds them to their word in every run of the tests, and tests/fuzz.py for as long as is wanted.
"""

import base64
import io
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from legion_p2p.core import dagcbor
from legion_p2p.core.admission import as_text, from_text, make_token, open_token
from legion_p2p.core.announcement import Announcement, Signed, _domain, open_signed, sign
from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import decode_dataset, decode_file
from legion_p2p.core.evidence import KeptEvidence, open_header, sign_header
from legion_p2p.core.gateway_packets import read_pcp_reply, read_pmp_reply
from legion_p2p.core.identity import Identity
from legion_p2p.core.igd import Url, read_answer, read_description
from legion_p2p.core.manifest import decode_base, decode_manifest, decode_shard
from legion_p2p.core.model_config import read_model_config
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.receipts import sign_receipt
from legion_p2p.core.run import RunSpec, SignedSpec, open_spec, sign_spec
from legion_p2p.core.wire import (
    GetInput,
    Omission,
    Push,
    Receipt,
    SignedHeader,
    Update,
    UpdateHeader,
    decode_header,
    decode_request,
    encode,
)  # fmt: skip
from legion_p2p.errors import LegionError
from legion_p2p.net import envelope as frames
from legion_p2p.observe.human import clean
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.car import read_car
from legion_p2p.store.evidence_file import EvidenceFile
from legion_p2p.store.network_key_file import load_network_key
from legion_p2p.tensor import codec
from legion_p2p.train.safetensors_file import open_safetensors

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
_owner = Identity(b"o" * 32)
_without = UpdateHeader("run", 3, 8, b"b" * 32, b"a" * 32, _owner.peer_id, "int8", (), (), 1, 1)
_receipt = Receipt("run", 3, _owner.peer_id, MEMBER.peer_id, 5, 7, b"b" * 32)
_shown = SignedHeader(encode(_without), sign_header(encode(_without), _owner))
_evidence = Omission("run", _receipt, sign_receipt(_receipt, _owner), _shown)

_SSDP = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: http://192.0.2.1:80/x.xml\r\n\r\n"
)


def must_be_plain(shown: str) -> None:
    assert all(char.isprintable() for char in shown), "no control character, and none that turns the direction of writing"


def signed_announcement(body: bytes) -> Announcement:
    """Of a liar: what it says is signed."""
    return open_signed(msgspec.msgpack.encode(Signed(body, MEMBER.sign(_domain(body)))))


def signed_spec(body: bytes) -> RunSpec:
    return open_spec(SignedSpec(body, MEMBER.sign(body)))


def signed_header(body: bytes) -> None:
    open_header(body, sign_header(body, MEMBER))


_said = msgspec.msgpack.decode(
    sign(Announcement(MEMBER.peer_id, "run", marks=bytes(16), testimonies=bytes(24)), MEMBER), type=Signed
)

DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "request": (decode_request, encode(Push("run", 1, 2, 3, 4, 5, "int8", b"payload", b"s" * 64))),
    "request for inputs": (decode_request, encode(GetInput("run", 1, b"h" * 32, 4))),
    "evidence": (decode_request, encode(_evidence)),
    "update": (decode_request, encode(Update(encode(_without), b"s" * 64, b"payload"))),
    "update header": (decode_header, encode(_without)),
    "envelope": (frames.decode, b"\x93\x01\x02\x03"),
    "announcement": (open_signed, sign(Announcement(MEMBER.peer_id, "run", addresses=("/ip4/127.0.0.1/tcp/1",)), MEMBER)),
    "announcement of a liar": (signed_announcement, _said.body),
    "specification of a liar": (signed_spec, _signed_spec.spec),
    "update header of a liar": (signed_header, encode(msgspec.structs.replace(_without, owner=MEMBER.peer_id))),
    "terminal text": (lambda data: must_be_plain(clean(data.decode(errors="replace"))), b"a name \x1b[31m of \xe2\x80\xae mine"),
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

CORPUS = Path(__file__).parent / "decoder_corpus.json"
"""What runs of tests/fuzz.py have kept: inputs that got a decoder further than others did, as base64."""


def corpus() -> dict[str, list[bytes]]:
    """By decoder."""
    kept = json.loads(CORPUS.read_text(encoding="ascii"))
    return {name: [base64.b64decode(data) for data in inputs] for name, inputs in kept.items()}
