"""Manifests: signed, linked by content, bounded, and read in one form only."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import (
    MAX_BLOCK_BYTES,
    MAX_LOG,
    MAX_STATE_BYTES,
    MAX_STATE_ENTRIES,
    Base,
    Manifest,
    StoredShard,
    decode_base,
    decode_manifest,
    decode_shard,
    encode_node,
    links_of,
    sign_manifest,
)
from legion_p2p.core.wire import MAX_INCLUDED, Inclusion
from legion_p2p.errors import DecodeError, SignatureError, UsageError

ME, OTHER = Identity(b"m" * 32), Identity(b"o" * 32)
RUN, LEAF, NODE = Cid.of(b"spec"), Cid.of(b"leaf"), Cid.of(b"node", DAG_CBOR)
MANIFEST = Manifest(RUN, b"s" * 64, 70, (NODE,), ME.peer_id, 1_700_000_000, str(NODE), {"rng": b"\0\1", "lr": 0.5, "text": "é"})
BASE = Base(3, b"d" * 32, (Inclusion("peer", 9),), (LEAF, LEAF))
SHARD = StoredShard(0, 5, b"e" * 32, NODE, ((LEAF,), (LEAF, RUN)))


def fields(data: bytes, **changes: object) -> bytes:
    """A node with other fields, as a stranger could write it; None leaves a field out."""
    return dagcbor.encode({key: value for key, value in (dagcbor.decode(data) | changes).items() if value is not ...})


def test_nodes_are_read_as_they_were_written() -> None:
    signed = sign_manifest(MANIFEST, ME)

    assert decode_manifest(encode_node(signed)) == signed
    assert decode_base(encode_node(BASE)) == BASE
    assert decode_shard(encode_node(SHARD)) == SHARD


def test_any_ipfs_client_can_walk_them_but_not_into_the_past() -> None:
    assert links_of(encode_node(sign_manifest(MANIFEST, ME))) == (RUN, NODE)  # the parent, which is NODE here, is only named
    assert links_of(encode_node(msgspec.structs.replace(MANIFEST, shards=(LEAF,)))) == (RUN, LEAF)
    assert links_of(encode_node(SHARD)) == (LEAF, RUN, NODE)


@pytest.mark.parametrize(
    "change", [{"step": 71}, {"shards": [LEAF]}, {"state": {}}, {"parent": ""}, {"publisher": OTHER.peer_id}]
)
def test_whatever_is_changed_the_signature_no_longer_fits(change: dict) -> None:
    data = encode_node(sign_manifest(MANIFEST, ME))

    with pytest.raises(SignatureError):
        decode_manifest(fields(data, **change))


def test_only_the_publisher_signs() -> None:
    with pytest.raises(UsageError, match="only the publisher"):
        sign_manifest(MANIFEST, OTHER)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"step": -1}, {"step": 1 << 63}, {"shards": []}, {"shards": ["text"]}, {"run": str(RUN)}, {"more": 1},
        {"step": ...}, {"publisher": "x" * 65}, {"parent": "nonsense"}, {"run_signature": b""}, {"run_signature": "s" * 64},
        {"state": {"a": [1]}}, {"state": {"a": NODE}}, {"state": {str(i): i for i in range(MAX_STATE_ENTRIES + 1)}},
        {"state": {"a": bytes(MAX_STATE_BYTES)}},
    ],
    ids=lambda change: f"{next(iter(change))}={str(next(iter(change.values())))[:20]}",
)  # fmt: skip
def test_a_manifest_with_anything_else_in_it_is_refused(change: dict) -> None:
    data = fields(encode_node(sign_manifest(MANIFEST, ME)), **change)

    with pytest.raises(DecodeError) as refused:
        decode_manifest(data)
    assert not isinstance(refused.value, SignatureError)


@pytest.mark.parametrize(
    ("read", "node", "change"),
    [
        (decode_base, BASE, {"leaves": []}), (decode_base, BASE, {"leaves": [LEAF] * 129}), (decode_base, BASE, {"digest": b"d"}),
        (decode_base, BASE, {"included": [["peer", 9]]}), (decode_base, BASE, {"version": 1 << 32}),
        (decode_shard, SHARD, {"log": [[]]}), (decode_shard, SHARD, {"log": [[LEAF]] * (MAX_LOG + 1)}),
        (decode_shard, SHARD, {"shard": 4096}), (decode_shard, SHARD, {"base": b"bytes"}),
    ],
)  # fmt: skip
def test_a_node_beyond_its_bounds_is_refused(read, node, change: dict) -> None:
    with pytest.raises(DecodeError):
        read(fields(encode_node(node), **change))


def test_one_kind_of_node_is_not_taken_for_another() -> None:
    with pytest.raises(DecodeError):
        decode_shard(encode_node(BASE))
    with pytest.raises(DecodeError):
        decode_manifest(encode_node(SHARD))


def test_a_node_larger_than_a_block_is_refused_on_both_sides() -> None:
    crowd = msgspec.structs.replace(BASE, included=tuple(Inclusion("p" * 64, 1 << 40) for _ in range(MAX_INCLUDED)))
    crowd = msgspec.structs.replace(crowd, included=crowd.included + crowd.included)

    with pytest.raises(UsageError, match="at most"):
        encode_node(crowd)
    with pytest.raises(DecodeError, match="at most"):
        decode_base(bytes(MAX_BLOCK_BYTES + 1))


@settings(max_examples=200)
@given(st.data())
def test_damaged_manifests_are_read_or_refused(data: st.DataObject) -> None:
    written = bytearray(encode_node(sign_manifest(MANIFEST, ME)))
    for _ in range(data.draw(st.integers(1, 3))):
        written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DecodeError):
        assert encode_node(decode_manifest(bytes(written))) == written
