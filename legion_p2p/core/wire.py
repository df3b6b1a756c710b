"""What peers say to each other: requests and their replies, as MessagePack maps.

Every field has a bound. Decoding checks types and bounds before anything is used; what does not fit raises DecodeError, and
whoever sent it is to blame. `type` names the message, so that any MessagePack reader can follow.
"""

from collections.abc import Iterable
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast, get_args

import msgspec

from legion_p2p.core.announcement import MAX_ANNOUNCEMENT_BYTES
from legion_p2p.core.distance import MAX_RATE
from legion_p2p.core.identity import MAX_PEER_ID_CHARS
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, MAX_SHARDS
from legion_p2p.core.run import MAX_OUTER_DELAY, MAX_SPEC_BYTES, RunName
from legion_p2p.errors import DecodeError, SelfCheckError

MAX_PAYLOAD_BYTES = 4 * MAX_SHARD_ELEMENTS + 4096  # a shard as fp32, and a codec's header
MAX_EXCHANGED = 64  # announcements in one exchange: with small models about 64 KiB
MAX_INCLUDED = 10_000  # contributions to one update: as many as members may be
MAX_UPDATES = 64  # updates in one reply
MAX_REASON_CHARS = 200
MAX_RUNS_TOLD = 16  # that one peer tells of: it is in one, and a later version may be in several
MAX_COUNT = 1 << 62
MAX_NORM = 1e24  # of a shard: its elements are at most 3.4e38 in fp32, and would have lost all meaning long before

MAX_HAS_CIDS = 8192  # in one question: 300 KiB
MAX_GET_CIDS = 64
MAX_BLOCKS_BYTES = 8 << 20  # in one answer: what a link of 8 Mbit/s carries in 8 s
MAX_BLOCK_BYTES = 1 << 20
MAX_CHECKPOINTS = 8  # that a peer tells of: it keeps the last three, and some of long ago
MAX_COMPARED = 8192  # states in one question: two of every shard; half of a control frame
MAX_BUSY_MS = 60_000

T = TypeVar("T")
R = TypeVar("R")

_Id = Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
_Run = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Shard = Annotated[int, msgspec.Meta(ge=0, lt=MAX_SHARDS)]
_Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Codec = Annotated[str, msgspec.Meta(max_length=64)]
_Payload = Annotated[bytes, msgspec.Meta(max_length=MAX_PAYLOAD_BYTES)]
_Signed = Annotated[bytes, msgspec.Meta(max_length=MAX_ANNOUNCEMENT_BYTES + 200)]
_SignedList = Annotated[tuple[_Signed, ...], msgspec.Meta(max_length=MAX_EXCHANGED)]
_Cid = Annotated[bytes, msgspec.Meta(min_length=36, max_length=36)]
_Block = Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK_BYTES)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK_BYTES)]
Part = Literal["residual", "momentum", "recent"]
"""What only an owner has of a shard: see `HandoverPart`."""
_Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """The base of requests and replies."""


class Request(Message, Generic[R], frozen=True):
    """A message that is answered by one of the messages R: `class GetShard(Request[ShardState | Busy], ...)`."""

    @classmethod
    def answered_by(cls, request: Self, reply: R) -> bool:
        """Whether `reply` is of a type that answers `request`."""
        return isinstance(reply, reply_types(cls))


class Done(Message, frozen=True, tag="done"):
    pass


class Busy(Message, frozen=True, tag="busy"):
    """So many are being served that there is no room for you. Ask others, or come again after so long."""

    retry_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUSY_MS)]


# finding and knowing each other


class SpecFound(Message, frozen=True, tag="spec_found"):
    spec: Annotated[bytes, msgspec.Meta(max_length=MAX_SPEC_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


class GetSpec(Request[SpecFound], frozen=True, tag="get_spec"):
    """Which runs of this name or id do you know? Any peer of a run answers, with SpecFound."""

    run: _Run


class RunSummary(msgspec.Struct, frozen=True):
    """A run, as one of its members tells of it to whoever asks."""

    name: RunName
    id: _Run
    n_members: _Count


class RunsFound(Message, frozen=True, tag="runs_found"):
    runs: Annotated[tuple[RunSummary, ...], msgspec.Meta(max_length=MAX_RUNS_TOLD)]


class GetRuns(Request[RunsFound], frozen=True, tag="get_runs"):
    """Which runs are you in? For somebody that does not know what runs there are, or has mistyped a name."""


class Exchanged(Message, frozen=True, tag="exchanged"):
    announcements: _SignedList


class Exchange(Request[Exchanged], frozen=True, tag="exchange"):
    """Here are announcements that I know; send me yours. The sender's own comes first."""

    run: _Run
    announcements: _SignedList


class Ping(Request[Done], frozen=True, tag="ping"):
    """Do you live? Answered with Done."""

    run: _Run


class PingFor(Request[Done], frozen=True, tag="ping_for"):
    """Ask `peer` for me whether it lives. Answered with Done if it does, refused if it does not answer."""

    run: _Run
    peer: _Id


class Accusation(Request[Done], frozen=True, tag="accusation"):
    """`peer`, in this incarnation, seems dead to me. A hint to look, not evidence."""

    run: _Run
    peer: _Id
    incarnation: _Count


# the life of a shard


class Pushed(Message, frozen=True, tag="pushed"):
    """The owner has the push and will include it in the next update, or has included it already."""

    version: _Version
    included: bool


class NotOwner(Message, frozen=True, tag="not_owner"):
    """Somebody else owns the shard, as far as I know: here is its announcement."""

    owner: _Id
    announcement: _Signed


class Push(Request[Pushed | NotOwner], frozen=True, tag="push"):
    """A member's compressed change of a shard since `version`, for the shard's owner."""

    run: _Run
    shard: _Shard
    version: _Version
    seq: _Count
    """Number of this contribution of this member to this shard; sent again, it counts once."""
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
    """Its weight: of no tokens there is nothing to push."""
    local_steps: _Count
    codec: _Codec
    payload: _Payload


class Inclusion(msgspec.Struct, frozen=True):
    """Whose contribution an update contains: a member and its number."""

    peer: _Id
    seq: _Count


class Failure(msgspec.Struct, frozen=True):
    """Whose contribution an update lacks, and why."""

    peer: _Id
    reason: _Reason


class UpdateHeader(msgspec.Struct, frozen=True):
    """What an update claims. The owner signs these bytes; the payload is bound to them by `digest`, that of the result."""

    run: _Run
    shard: _Shard
    version: _Version
    """The version that this update makes out of the one before."""
    base_digest: _Digest
    digest: _Digest
    owner: _Id
    codec: _Codec
    included: Annotated[tuple[Inclusion, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    failed: Annotated[tuple[Failure, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    expected: Annotated[int, msgspec.Meta(ge=0, le=MAX_INCLUDED)]
    tokens: _Count

    @property
    def averaged_fraction(self) -> float:
        """Contributions used per member that was training; 1 where nobody is missing."""
        return len(self.included) / max(1, self.expected, len(self.included))


class Held(Message, frozen=True, tag="held"):
    """What the answering peer holds of the shard now."""

    version: _Version
    digest: _Digest


class Update(Request[Held], frozen=True, tag="update"):
    """The owner's compressed change of a shard. Answered with Held."""

    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]
    payload: _Payload


class Updates(Message, frozen=True, tag="updates"):
    updates: Annotated[tuple[Update, ...], msgspec.Meta(max_length=MAX_UPDATES)]
    at_version: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] | None
    """The asker's version, where its state is on this chain; None where the log does not reach it."""


class ShardState(Message, frozen=True, tag="shard_state"):
    """A shard whole, as fp32 bytes, and which contributions of whom it contains."""

    shard: _Shard
    version: _Version
    digest: _Digest
    included: Annotated[tuple[Inclusion, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    payload: _Payload
    ancestor: bool
    """The asker's state lies in the history of this one, so nothing of it is missing here."""


class GetUpdates(Request[Updates | ShardState | Busy], frozen=True, tag="get_updates"):
    """Send what comes after the state that I hold. Answered with Updates, or with ShardState where the log is too short."""

    run: _Run
    shard: _Shard
    version: _Version
    digest: _Digest
    log_only: bool = False
    """Answer with Updates in any case, empty ones where the log is too short."""


class GetShard(Request[ShardState | Busy], frozen=True, tag="get_shard"):
    """Send the whole shard. Answered with ShardState."""

    run: _Run
    shard: _Shard


class HandoverPart(Request[Held], frozen=True, tag="handover"):
    """A part of what only an owner has, for the one who owns the shard now. Answered with Held.

    The residual of its error feedback, or what its outer optimizer remembers: one at a time, as two would not fit into one frame.
    """

    run: _Run
    shard: _Shard
    version: _Version
    digest: _Digest
    payload: _Payload
    """Empty: there is nothing, the question is what the other one holds."""
    part: Part = "residual"
    n_recent: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTER_DELAY)] = 0
    """Changes that `recent` is the sum of."""
    codec: _Codec = "fp32"
    """Another one where time is short."""
    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)] = b""
    """Of the last update of the shard that the sender made: who fetched the shard whole has never seen one."""
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


# between regions


class SyncReply(Message, frozen=True, tag="crossed"):
    """The answering side's half of the meeting, in the asker's codec; it has moved already."""

    payload: _Payload
    slowed_to: Annotated[float, msgspec.Meta(ge=0, le=MAX_RATE)] | None = None
    """Both move elastically at this rate, at most that asked for: the run's rule would move one of them too far. None: they do
    as asked."""


class Unknown(Message, frozen=True, tag="unknown"):
    """What `known` names is not known here: begin again, with the whole shard."""


class SyncRequest(Request[SyncReply | Unknown], frozen=True, tag="cross"):
    """From the owner of a shard in one region to its owner in another, or of its center variable: what I hold, compressed.

    Tell me what you hold, and move as I shall. Answered with SyncReply, or with Unknown.
    """

    run: _Run
    shard: _Shard
    region: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """Of the asker."""
    exchange: _Count
    """Number of this meeting; sent again, it counts once."""
    known: Annotated[bytes, msgspec.Meta(max_length=32)]
    """Digest of what both know of each other, to which the payload is the difference; empty: the payload is the whole."""
    rate: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE)]
    """The moving rate of this meeting."""
    limit: Annotated[float, msgspec.Meta(ge=0, le=MAX_NORM)] | None
    """The longest step that the asker takes, as a Euclidean norm; None: any."""
    center: bool
    """It is the center variable that the asker wants to meet."""
    codec: _Codec
    payload: _Payload


class RelayRequest(Request[Held], frozen=True, tag="carry"):
    """From a relay to the owner of a shard in its region: subtract this, for I have met another region. Answered with Held."""

    run: _Run
    shard: _Shard
    number: _Count
    """Sent again, it counts once."""
    codec: _Codec
    payload: _Payload


# blocks of checkpoints, for anybody


class HeldBlocks(Message, frozen=True, tag="held_blocks"):
    """For each block asked for how many bytes it has; 0: it is not here."""

    sizes: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=MAX_HAS_CIDS)]


class HasBlocks(Request[HeldBlocks], frozen=True, tag="has_blocks"):
    """Which of these blocks do you have? Any peer with a store answers, with HeldBlocks."""

    cids: Annotated[tuple[_Cid, ...], msgspec.Meta(max_length=MAX_HAS_CIDS)]


class Blocks(Message, frozen=True, tag="blocks"):
    """Each block asked for, in order; empty where it is not here, or found no room in this answer."""

    blocks: Annotated[tuple[_Block, ...], msgspec.Meta(max_length=MAX_GET_CIDS)]


class GetBlocks(Request[Blocks | Busy], frozen=True, tag="get_blocks"):
    """Send these blocks. Answered with Blocks."""

    cids: Annotated[tuple[_Cid, ...], msgspec.Meta(max_length=MAX_GET_CIDS)]


class Checkpoints(Message, frozen=True, tag="checkpoints"):
    """Of their manifests, the newest first."""

    cids: Annotated[tuple[_Cid, ...], msgspec.Meta(max_length=MAX_CHECKPOINTS)]


class GetCheckpoints(Request[Checkpoints], frozen=True, tag="get_checkpoints"):
    """Which checkpoints of this run do you have? Answered with Checkpoints."""

    run: _Run


# joining by a checkpoint


class State(msgspec.Struct, frozen=True):
    """A shard in one version."""

    shard: _Shard
    version: _Version
    digest: _Digest


class AncestryReply(Message, frozen=True, tag="compared"):
    """For each state how many bytes of updates lead from it to what I hold; or UNKNOWN; or OTHER: I was at another then."""

    since: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-2, le=MAX_COUNT)], ...], msgspec.Meta(max_length=MAX_COMPARED)]


UNKNOWN, OTHER = -1, -2


class AncestryQuery(Request[AncestryReply], frozen=True, tag="compare"):
    """Which of these states does what you hold come from? Answered with AncestryReply."""

    run: _Run
    states: Annotated[tuple[State, ...], msgspec.Meta(max_length=MAX_COMPARED)]


REQUESTS: tuple[type[Request[Any]], ...] = tuple(
    kind for kind in vars().values() if isinstance(kind, type) and issubclass(kind, Request) and kind is not Request
)
"""Every request of the protocol."""

Reply = Message
"""Any reply, where the request does not say which."""


@cache
def reply_types(kind: type[Request[Any]]) -> tuple[type[Message], ...]:
    """The messages that answer requests of this kind."""
    (named,) = get_args(kind.__orig_bases__[0])  # type: ignore[attr-defined]  # of the class statement: Request[named]
    return get_args(named) or (named,)


def decoder_of(kinds: Iterable[type[Any]]) -> "msgspec.msgpack.Decoder[Any]":
    """Decodes messages of these kinds and no others."""
    return msgspec.msgpack.Decoder(reduce(or_, kinds))


REPLIES = tuple(dict.fromkeys(reply for kind in REQUESTS for reply in reply_types(kind)))
"""Everything that answers one of them."""

_encoder = msgspec.msgpack.Encoder()
_decoder_of_one = cache(msgspec.msgpack.Decoder)
_reply_decoder = cache(lambda kind: decoder_of(reply_types(kind)))
_requests = decoder_of(REQUESTS)
_replies = decoder_of(REPLIES)
_headers = msgspec.msgpack.Decoder(UpdateHeader)


def encode(message: Message | UpdateHeader) -> bytes:
    """The MessagePack bytes of a message. Nothing is checked: what goes to other peers passes `encode_checked`."""
    return _encoder.encode(message)


def encode_checked(message: Message | UpdateHeader) -> bytes:
    """The bytes of a message that is about to be sent.

    Raises: SelfCheckError, if its receiver would refuse it: there it would count as misbehaviour, and nobody here would know.
    """
    body = _encoder.encode(message)
    try:
        _decoder_of_one(type(message)).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise SelfCheckError(f"{type(message).__name__} that its receiver would refuse: {bad}") from bad
    return body


class Encoded(Generic[R]):
    """A request as bytes, so that one that goes to many peers is encoded once."""

    def __init__(self, request: Request[R]) -> None:
        self.kind = type(request)
        self.body = encode_checked(request)

    def decode_reply(self, data: bytes) -> R:
        """The reply to it. Raises: DecodeError, also where the message is of a type that does not answer it."""
        return cast("R", decode_with(_reply_decoder(self.kind), data, f"reply to {self.kind.__name__}"))


def decode_request(data: bytes) -> Request[Any]:
    """Raises: DecodeError."""
    return cast("Request[Any]", decode_with(_requests, data, "request"))


def decode_reply(data: bytes) -> Reply:
    """Any reply, where the request is not at hand. Raises: DecodeError."""
    return cast("Reply", decode_with(_replies, data, "reply"))


def decode_header(data: bytes) -> UpdateHeader:
    """Raises: DecodeError."""
    return decode_with(_headers, data, "update header")


def decode_with(decoder: "msgspec.msgpack.Decoder[T]", data: bytes, what: str) -> T:
    """Raises: DecodeError, whatever is wrong with `data`; it calls it `what`."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise DecodeError(f"{what} of {len(data)} bytes: {bad}") from bad
