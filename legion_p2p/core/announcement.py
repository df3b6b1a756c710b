"""What a member says of itself, every few seconds, signed: the only source of what others know of it.

A newer announcement replaces an older one of the same peer; newer means a higher (incarnation, seq). Anyone may pass them
on, nobody can change one.
"""

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import msgspec

from legion_p2p.core.admission import MAX_REVOCATIONS_SHOWN, MAX_TOKEN_BYTES
from legion_p2p.core.answers import MARK_LENGTH
from legion_p2p.core.claims import MAX_NAMED
from legion_p2p.core.coordinates import Coordinate
from legion_p2p.core.identity import MAX_PEER_ID_CHARS, Identity, PeerId, verify
from legion_p2p.core.placement import MAX_WEIGHT
from legion_p2p.core.reach import Reach
from legion_p2p.core.roles import Role
from legion_p2p.core.witnesses import MAX_TESTIMONIES, TESTIMONY_BYTES, unpack_testimonies
from legion_p2p.errors import DecodeError, SelfCheckError

MAX_ANNOUNCEMENT_BYTES = 16 * 1024  # the most addresses, revocations, names of others and chunks are 12 KiB
MAX_OPENED = 512  # checked announcements that are remembered: some hundred bytes each as a rule, 24 MiB at worst
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 200
MAX_MEMBERS = 10_000  # of a run that one peer knows: a table of announcements of a kilobyte each
MAX_SUSPECTED = 16  # in one announcement: where more are silent at once, all see it for themselves
MAX_TROUBLE_CHARS = 400  # one sentence with what helps
MAX_CIRCUITS = 10_000  # of one relay: more than a host has file descriptors for
MARK_BYTES = 8
MAX_MARKS_SHOWN = 32  # shards: of more a digest and questions of those concerned are shorter, see `core.marks`

_Id = Annotated[PeerId, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Rate = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


NAMES_ON_WIRE = {
    "peer_id": "a", "run": "b", "incarnation": "c", "seq": "d", "addresses": "e", "region": "f", "coordinate": "g",
    "testimonies": "h", "weight": "i", "ready": "j", "training": "k", "leaving": "l", "done": "m", "step": "n",
    "run_step": "o", "tokens": "p", "tokens_per_s": "q", "step_s": "r", "loss": "s", "sent_bytes": "t",
    "received_bytes": "u", "upload_bps": "v", "download_bps": "w", "relay": "x", "marks": "y", "epoch": "z",
    "chunks": "A", "token": "B", "revocations": "C", "stalled": "D", "avoided": "E", "suspected": "F", "trouble": "G",
    "reach": "H", "role": "I", "circuits": "J", "paused": "K", "run_tokens": "L", "envoy": "M", "region_size": "N",
    "region_done": "O", "reached": "P", "test": "Q", "test_round": "R", "marks_digest": "S", "version": "T",
}  # fmt: skip
"""A letter for each field: whole names would be a quarter of what a member hears of others."""


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True, rename=NAMES_ON_WIRE):
    """A member's own account. Counters are totals since it joined."""

    peer_id: _Id
    run: Annotated[str, msgspec.Meta(max_length=100)]
    incarnation: _Count = 0
    """Raised to refute a false death, and at every start."""
    seq: _Count = 0
    addresses: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)], ...], msgspec.Meta(max_length=MAX_ADDRESSES)
    ] = ()
    region: Annotated[str, msgspec.Meta(max_length=64)] = ""
    coordinate: Coordinate | None = None
    """Where it is, by the round trips that it measured."""
    testimonies: Annotated[bytes, msgspec.Meta(max_length=MAX_TESTIMONIES * TESTIMONY_BYTES)] = b""
    """Round trips to those that it is a witness of, packed: see `core.witnesses`."""
    weight: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 1.0
    """Share of the shards that it can carry, relative to others; 0 owns nothing. Whoever reads it takes more than MAX_WEIGHT for
    MAX_WEIGHT: it is a claim, and one peer must not own all."""
    ready: bool = False
    """Holds every shard: may own."""
    training: bool = False
    """Trains now: owners wait for its pushes."""
    leaving: bool = False
    done: bool = False
    """Has trained all it wanted to, and serves the others until they have too."""
    step: _Count = 0
    run_step: _Count = 0
    """Of the run, as this member counts: what it had come to when this member began, and this member's own steps since."""
    tokens: _Count = 0
    tokens_per_s: _Rate = 0.0
    step_s: _Rate = 0.0
    """Seconds of a local step, smoothed."""
    loss: float | None = None
    sent_bytes: _Count = 0
    received_bytes: _Count = 0
    upload_bps: _Rate = 0.0
    """Bits per second that it has lately reached in sending, or may send; 0: not known."""
    download_bps: _Rate = 0.0
    relay: bool = False
    """Has volunteered to meet other regions for owners that have little upload: see `core.relays`. Circuits are another thing."""
    marks: Annotated[bytes, msgspec.Meta(max_length=MAX_MARKS_SHOWN * MARK_BYTES)] = b""
    """For every shard its version and the start of its digest, packed: see `pack_marks`. Of a run of more shards it is empty."""
    epoch: _Count = 0
    chunks: Annotated[bytes, msgspec.Meta(max_length=1024)] = b""
    """Bitmap of the chunks of data that it has claimed in `epoch`."""
    token: Annotated[bytes, msgspec.Meta(max_length=MAX_TOKEN_BYTES)] = b""
    """What admits it to the run: see `core.admission`."""
    revocations: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_TOKEN_BYTES)], ...], msgspec.Meta(max_length=MAX_REVOCATIONS_SHOWN)
    ] = ()
    """Some of those that it knows."""
    stalled: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=MAX_NAMED)] = ()
    """Owners that have made nothing of its contributions for too long: see `core.stalls`."""
    avoided: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=MAX_NAMED)] = ()
    """Members that failed to pass updates on to it: see `core.forwarding`."""
    suspected: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=MAX_SUSPECTED)] = ()
    """Members that do not answer it, so that others look for themselves: see `core.ring_watch`."""
    trouble: Annotated[str, msgspec.Meta(max_length=MAX_TROUBLE_CHARS)] = ""
    """Why it has nothing to push, in words for people; empty while all is well."""
    reach: Reach = Reach.UNKNOWN
    """How others get a connection to it, as it found out by their dials. The relays that lead to it are the circuits among
    `addresses`."""
    role: Role = Role.AUTO
    circuits: Annotated[int, msgspec.Meta(ge=0, le=MAX_CIRCUITS)] = 0
    """How many circuits it carries as a relay for others; 0: it is no relay."""
    paused: bool = False
    """Its user lets it train nothing for now: it is `done` meanwhile, so that nobody waits for it, and goes on later."""
    run_tokens: _Count = 0
    """Tokens that the run has trained, as this member counts."""
    envoy: bool = False
    """It is one of those by which other regions know its own: see `core.envoys`."""
    region_size: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEMBERS)] = 0
    """Members of its region that it knows, itself included."""
    region_done: bool = False
    """All of them are done."""
    reached: bool = False
    """It has seen the run come to its target."""
    test: Annotated[bytes, msgspec.Meta(max_length=MARK_LENGTH)] = b""
    """Start of the digest of the multiple-choice test that it takes part in: see `core.question_ledger`. Empty: of none."""
    test_round: _Count = 0
    """The newest round of it whose questions it has answered."""
    marks_digest: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """Of the marks of all shards, where these are too many: see `core.marks`."""
    version: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] = 0
    """With a digest: the version that half of the shards are at or beyond."""

    @property
    def order(self) -> tuple[int, int]:
        return (self.incarnation, self.seq)

    @property
    def state(self) -> bytes:
        """The same for two members that hold the same of every shard; empty for one that lacks some."""
        return self.marks or self.marks_digest


class Signed(msgspec.Struct, frozen=True):
    """An announcement as it travels."""

    body: Annotated[bytes, msgspec.Meta(max_length=MAX_ANNOUNCEMENT_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


class Mark(msgspec.Struct, frozen=True):
    """Which state of a shard a member holds: version, and the first four bytes of its digest as an integer."""

    version: int
    prefix: int


_encoder = msgspec.msgpack.Encoder()
_announcement = msgspec.msgpack.Decoder(Announcement)
_signed = msgspec.msgpack.Decoder(Signed)


def sign(announcement: Announcement, identity: Identity) -> bytes:
    """The bytes of a signed announcement. Raises: SelfCheckError, if others would refuse it."""
    body = _encoder.encode(announcement)
    try:
        _announcement.decode(body)
    except msgspec.DecodeError as bad:
        raise SelfCheckError(f"this peer's announcement would be refused by the others: {bad}") from bad
    if len(body) > MAX_ANNOUNCEMENT_BYTES:
        raise SelfCheckError(f"this peer's announcement has {len(body)} bytes, others take {MAX_ANNOUNCEMENT_BYTES}")
    return _encoder.encode(Signed(body, identity.sign(_domain(body))))


@lru_cache(maxsize=MAX_OPENED)
def open_signed(data: bytes) -> Announcement:
    """Read and check an announcement that came from a stranger. Most come several times, by gossip and in exchanges.

    Raises: DecodeError; SignatureError.
    """
    if len(data) > MAX_ANNOUNCEMENT_BYTES + 200:
        raise DecodeError(f"announcement of {len(data)} bytes, at most {MAX_ANNOUNCEMENT_BYTES}")
    try:
        signed = _signed.decode(data)
        announcement = _announcement.decode(signed.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise DecodeError(f"announcement: {bad}") from bad
    verify(announcement.peer_id, _domain(signed.body), signed.signature)
    if announcement.weight > MAX_WEIGHT:
        announcement = msgspec.structs.replace(announcement, weight=MAX_WEIGHT)
    unpack_testimonies(announcement.testimonies)
    if len(announcement.marks) % MARK_BYTES:
        raise DecodeError(f"marks of {len(announcement.marks)} bytes, must be a multiple of {MARK_BYTES}")
    return announcement


def _domain(body: bytes) -> bytes:
    """Keeps a signature on an announcement from being used as one on anything else."""
    return b"legion/announcement/2\0" + hashlib.sha256(body).digest()


_MARK = struct.Struct(">II")


def mark_of(version: int, digest: bytes) -> Mark:
    return Mark(version, int.from_bytes(digest[:4], "big"))


def pack_marks(marks: Sequence[Mark]) -> bytes:
    """Eight bytes a shard: version and digest prefix, both big-endian. A version that does not fit is written as the largest."""
    return b"".join(struct.pack(">II", min(mark.version, 0xFFFFFFFF), mark.prefix) for mark in marks)


@lru_cache(maxsize=MAX_OPENED)
def unpack_marks(packed: bytes) -> tuple[Mark, ...]:
    return tuple(Mark(version, prefix) for version, prefix in struct.iter_unpack(">II", packed))


def mark_at(packed: bytes, shard: int) -> Mark | None:
    """The mark of one shard; None where nothing is said of it."""
    return Mark(*_MARK.unpack_from(packed, MARK_BYTES * shard)) if len(packed) >= MARK_BYTES * (shard + 1) else None


def version_at(packed: bytes, shard: int) -> int | None:
    """The version of one shard; None where nothing is said of it."""
    return int(struct.unpack_from(">I", packed, MARK_BYTES * shard)[0]) if len(packed) >= MARK_BYTES * (shard + 1) else None


def peer_of(announcement: Announcement) -> PeerId:
    return announcement.peer_id
