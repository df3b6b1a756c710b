"""What a checkpoint is, as DAG-CBOR nodes that name each other by content: any IPFS client can walk them.

    Manifest   one point of a run, signed by the peer that published it
     |- run      the bytes of the run's specification; their CID is the run's id
     |- shards   one for each shard of the plan, in order
     |   |- base   a full state: leaves of the shard's fp32 bytes (core/shard_chunks.py)
     |   `- log    the updates since, one for each version: the very messages that were broadcast, cut into blocks
     `- state    what else is needed to go on; of a sharded run with a link to what its optimizer remembers, as bases

The manifest before it is named as text, not as a link: a user that fetches or pins a checkpoint, with any IPFS client, should not
need all that came before, which may be pruned already.

A shard whose state did not change is the same node in both manifests, and its base is shared by all that build on it: what an
incremental checkpoint adds is the log.
"""

import math
from typing import Annotated, Any, TypeVar

import msgspec

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import MAX_CID_CHARS, Cid
from legion_p2p.core.identity import MAX_PEER_ID_CHARS, SIGNATURE_BYTES, Identity, verify
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, MAX_SHARDS
from legion_p2p.core.seniority import SALT_BYTES
from legion_p2p.core.wire import MAX_COUNT, MAX_INCLUDED, MAX_PAYLOAD_BYTES, Inclusion
from legion_p2p.errors import DecodeError, UsageError

FORMAT = 1
LEAF_ELEMENTS = 1 << 16  # 256 KiB as fp32, what IPFS chunks files into by default
MAX_LEAF_BYTES = 512 << 10  # every IPFS client takes blocks of this size
MAX_BLOCK_BYTES = 1 << 20  # of any block: a run's specification is one, so that its CID is the run's id
MAX_BASE_LEAVES = MAX_SHARD_ELEMENTS // LEAF_ELEMENTS
MAX_UPDATE_LEAVES = 2 + (MAX_PAYLOAD_BYTES + (1 << 20)) // MAX_LEAF_BYTES  # the payload, and the signed header
MAX_LOG = 1024  # updates since the base: fetching and applying more takes longer than a new base
MOMENTS = "moments"  # in a manifest's state: the link to its StoredMoments
MAX_STATE_ENTRIES = 64
MAX_STATE_BYTES = 64 << 10  # torch's random state is 5 KiB

_SIGNED_FOR = b"legion/manifest/1\n"  # so that no other signature of the same key passes for one of a manifest

_Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Bases = Annotated[tuple[Cid, ...], msgspec.Meta(min_length=1, max_length=MAX_SHARDS)]
_UpdateLeaves = Annotated[tuple[Cid, ...], msgspec.Meta(min_length=1, max_length=MAX_UPDATE_LEAVES)]


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A shard whole, in one version."""

    version: _Version
    digest: _Digest
    included: Annotated[tuple[Inclusion, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    """The newest contribution of every member that this state contains."""
    leaves: Annotated[tuple[Cid, ...], msgspec.Meta(min_length=1, max_length=MAX_BASE_LEAVES)]
    salt: Annotated[bytes, msgspec.Meta(max_length=SALT_BYTES)] = b""
    """By which its owner is found in this version: see `core.seniority`. Not written where there is none."""


class StoredShard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shard in one version: its base, and the updates since."""

    shard: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SHARDS)]
    version: _Version
    digest: _Digest
    """SHA-256 of the fp32 bytes after the last update."""
    base: Cid
    log: Annotated[tuple[_UpdateLeaves, ...], msgspec.Meta(max_length=MAX_LOG)] = ()
    """For each update, in order: the leaves that its message was cut into."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint of a run."""

    run: Cid
    """Of the run's specification: the run's id."""
    run_signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    """The creator's, of the specification."""
    step: _Count
    shards: Annotated[tuple[Cid, ...], msgspec.Meta(min_length=1, max_length=MAX_SHARDS)]
    publisher: Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
    created_s: _Count
    """Seconds since the epoch by the publisher's clock; for people, decides nothing."""
    parent: Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)] = ""
    """The CID of the manifest before; empty: there is none."""
    state: dict[str, Any] = {}
    """What else is needed to go on: numbers, text and bytes by name, which only its writer interprets; and the link MOMENTS."""
    signature: Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)] = b""
    """The publisher's, of everything above."""
    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)] = FORMAT


class StoredMoments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the optimizer of a sharded run remembers: its moments, cut as the parameters are."""

    n_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
    """That they have seen."""
    first: _Bases
    second: _Bases


Node = Base | StoredShard | Manifest | StoredMoments
T = TypeVar("T", Base, StoredShard, Manifest, StoredMoments)


def sign_manifest(manifest: Manifest, identity: Identity) -> Manifest:
    """`manifest` with the publisher's signature.

    Raises: UsageError, if `identity` is not the publisher, or the state too large.
    """
    if manifest.publisher != identity.peer_id:
        raise UsageError(f"only the publisher {manifest.publisher} can sign this manifest, not {identity.peer_id}")
    try:
        _check_state(manifest.state)
    except DecodeError as bad:
        raise UsageError(str(bad)) from bad
    return msgspec.structs.replace(manifest, signature=identity.sign(_signed_bytes(manifest)))


def encode_node(node: Node) -> bytes:
    """The bytes of its block. Raises: UsageError, if they are more than a block may have."""
    data = dagcbor.encode(_builtins(node))
    if len(data) > MAX_BLOCK_BYTES:
        raise UsageError(f"a {type(node).__name__} of {len(data)} bytes, at most {MAX_BLOCK_BYTES}: begin a new base")
    return data


def decode_base(data: bytes) -> Base:
    """Raises: DecodeError."""
    return _decode(data, Base)


def decode_shard(data: bytes) -> StoredShard:
    """Raises: DecodeError."""
    return _decode(data, StoredShard)


def decode_moments(data: bytes) -> StoredMoments:
    """Raises: DecodeError."""
    return _decode(data, StoredMoments)


def decode_manifest(data: bytes) -> Manifest:
    """Its signature is checked too. Raises: DecodeError; SignatureError."""
    manifest = _decode(data, Manifest)
    _check_state(manifest.state)
    if manifest.parent:
        Cid.parse(manifest.parent)
    verify(manifest.publisher, _signed_bytes(manifest), manifest.signature)
    return manifest


def check_shard(shard: int, state: StoredShard, base: Base) -> None:
    """That a manifest's state of a shard and its base fit together. Raises: DecodeError."""
    if state.shard != shard or state.version != base.version + len(state.log):
        raise DecodeError(
            f"shard {shard} of a manifest: says it is shard {state.shard} in version {state.version}, "
            f"from a base in version {base.version} and {len(state.log)} updates"
        )


def checkpoint_key(run: str) -> str:
    """The key under which peers that have checkpoints of the run of this id are found."""
    return f"legion/checkpoint/{run}"


def block_key(cid: Cid) -> str:
    """The key under which peers that have all that this block links to are found."""
    return f"legion/block/{cid}"


def links_of(data: bytes) -> tuple[Cid, ...]:
    """What a dag-cbor block links to, each once, in order. Raises: DecodeError."""
    return tuple(dict.fromkeys(dagcbor.links(dagcbor.decode(data))))


def _decode(data: bytes, kind: type[T]) -> T:
    if len(data) > MAX_BLOCK_BYTES:
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes, at most {MAX_BLOCK_BYTES}")
    value = dagcbor.decode(data)
    try:
        node = msgspec.convert(value, kind)
    except msgspec.ValidationError as bad:
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes: {bad}") from bad
    if _builtins(node) != value:  # text where bytes belong, or a field left out that is always written
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes is not written as such nodes are")
    return node


def _builtins(node: Node) -> dict[str, Any]:
    return {name: _plain(getattr(node, name)) for name in node.__struct_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return msgspec.structs.asdict(value) if isinstance(value, Inclusion) else value


def _signed_bytes(manifest: Manifest) -> bytes:
    fields = _builtins(manifest)
    del fields["signature"]
    return _SIGNED_FOR + dagcbor.encode(fields)


def _check_state(state: dict[str, Any]) -> None:
    if len(state) > MAX_STATE_ENTRIES:
        raise DecodeError(f"a manifest's state of {len(state)} entries, at most {MAX_STATE_ENTRIES}")
    for name, value in state.items():
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        is_link = isinstance(value, Cid) and name == MOMENTS
        if not (value is None or is_number or is_link or isinstance(value, str | bytes)):
            raise DecodeError(f"{name[:40]!r} in a manifest's state is a {type(value).__name__}: must be a number, text or bytes")
    try:
        size = len(dagcbor.encode(state))
    except UsageError as bad:
        raise DecodeError(f"a manifest's state: {bad}") from bad
    if size > MAX_STATE_BYTES:
        raise DecodeError(f"a manifest's state of {size} bytes, at most {MAX_STATE_BYTES}")
