"""Checkpoints in a block store: writing the nodes of core/manifest.py and reading them back."""

import hashlib
from collections.abc import Iterable, Iterator

from legion_p2p.core import shard_chunks
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import (
    MAX_LEAF_BYTES,
    Base,
    Manifest,
    Node,
    StoredMoments,
    StoredShard,
    check_shard,
    decode_base,
    decode_manifest,
    decode_moments,
    decode_shard,
    encode_node,
    sign_manifest,
)
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec, SignedSpec, open_spec
from legion_p2p.core.shard_chunks import encode_chunk, split
from legion_p2p.core.wire import Inclusion
from legion_p2p.errors import DecodeError, MissingBlockError
from legion_p2p.store.blocks import BlockStore


def put_base(
    store: BlockStore, version: int, included: Iterable[Inclusion], data: bytes | memoryview, *, salt: bytes = b""
) -> Cid:
    """Store a shard whole; `data` is its little-endian fp32 bytes. Put it, and what is to link to it, within `store.hold()`."""
    return put_chunks(store, version, hashlib.sha256(data).digest(), included, map(encode_chunk, split(data)), salt=salt)


def put_chunks(
    store: BlockStore, version: int, digest: bytes, included: Iterable[Inclusion], leaves: Iterable[bytes], *, salt: bytes = b""
) -> Cid:
    """Store a shard whole that is in leaves already; `digest` is of its fp32 bytes."""
    blocks = [(Cid.of(leaf), leaf) for leaf in leaves]
    store.put_all(blocks)
    return put_node(store, Base(version, digest, tuple(included), tuple(cid for cid, _ in blocks), salt))


def put_update(store: BlockStore, message: bytes) -> tuple[Cid, ...]:
    """Store an encoded update as it was broadcast; returns its entry in the log."""
    view = memoryview(message)
    blocks = [(Cid.of(part), part) for part in (view[at : at + MAX_LEAF_BYTES] for at in range(0, len(view), MAX_LEAF_BYTES))]
    store.put_all(blocks)
    return tuple(cid for cid, _ in blocks)


def put_node(store: BlockStore, node: Node) -> Cid:
    return store.put(encode_node(node), DAG_CBOR)


def put_spec(store: BlockStore, signed: SignedSpec) -> Cid:
    """Store a run's specification: its CID is the run's id."""
    return store.put(signed.spec)


def publish(store: BlockStore, manifest: Manifest, identity: Identity, label: str = "") -> Cid:
    """Sign a manifest, store and pin it."""
    root = put_node(store, sign_manifest(manifest, identity))
    store.pin(root, label)
    return root


def get_manifest(store: BlockStore, cid: Cid) -> Manifest:
    """Raises: MissingBlockError; DecodeError; SignatureError."""
    return decode_manifest(_node(store, cid))


def get_shard(store: BlockStore, cid: Cid) -> StoredShard:
    """Raises: MissingBlockError; DecodeError."""
    return decode_shard(_node(store, cid))


def get_base(store: BlockStore, cid: Cid) -> Base:
    """Raises: MissingBlockError; DecodeError."""
    return decode_base(_node(store, cid))


def get_moments(store: BlockStore, cid: Cid) -> StoredMoments:
    """Raises: MissingBlockError; DecodeError."""
    return decode_moments(_node(store, cid))


def get_spec(store: BlockStore, manifest: Manifest) -> tuple[SignedSpec, RunSpec]:
    """The specification of a manifest's run, checked. Raises: MissingBlockError; DecodeError; SignatureError."""
    signed = SignedSpec(store.get(manifest.run), manifest.run_signature)
    return signed, open_spec(signed)


def get_shards(store: BlockStore, manifest: Manifest, plan: ShardPlan) -> Iterator[tuple[StoredShard, Base]]:
    """Every shard's state and base, in order; that they fit together and into the plan is checked.

    Raises: MissingBlockError; DecodeError.
    """
    if len(manifest.shards) != plan.n_shards:
        raise DecodeError(f"a manifest of {len(manifest.shards)} shards, its run has {plan.n_shards}")
    for i, cid in enumerate(manifest.shards):
        state = get_shard(store, cid)
        base = get_base(store, state.base)
        check_shard(i, state, base)
        yield state, base


def base_bytes(store: BlockStore, base: Base, n_elements: int) -> bytes:
    """A base's little-endian fp32 bytes, checked against its digest. Raises: MissingBlockError; DecodeError."""
    return shard_chunks.base_bytes(store.get, base, n_elements)


def update_bytes(store: BlockStore, leaves: Iterable[Cid]) -> bytes:
    """An encoded update out of a log. Raises: MissingBlockError."""
    return b"".join(store.get(cid) for cid in leaves)


def find_manifests(store: BlockStore) -> dict[Cid, Manifest]:
    """Every manifest in the store whose signature is right, newest first: by run, then step, then the publisher's clock."""
    found = {}
    for cid in store:
        if cid.codec == DAG_CBOR:
            try:
                found[cid] = decode_manifest(store.get(cid))
            except (MissingBlockError, DecodeError):
                continue
    return dict(sorted(found.items(), key=lambda item: (item[1].run, -item[1].step, -item[1].created_s, item[0])))


def _node(store: BlockStore, cid: Cid) -> bytes:
    if cid.codec != DAG_CBOR:
        raise DecodeError(f"{cid} names raw bytes, not a node of a checkpoint")
    return store.get(cid)
