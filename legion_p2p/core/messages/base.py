"""What all messages have in common: a request names the replies that answer it, and every field has a bound."""

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar, get_args

import msgspec

from legion_p2p.core.identity import MAX_PEER_ID_CHARS
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, MAX_SHARDS

MAX_PAYLOAD_BYTES = 4 * MAX_SHARD_ELEMENTS + 4096  # a shard as fp32, and a codec's header
MAX_COUNT = 1 << 62
MAX_BUSY_MS = 60_000

R = TypeVar("R")

PeerName = Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
RunId = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
ShardIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_SHARDS)]
Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
CodecName = Annotated[str, msgspec.Meta(max_length=64)]
if TYPE_CHECKING:
    Payload = bytes | memoryview
else:
    Payload = Annotated[memoryview, msgspec.Meta(max_length=MAX_PAYLOAD_BYTES)]
"""Of a message that was decoded, a view of what arrived: copying a shard costs as much CPU as decrypting it."""


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
    """Others are being served, and there is no room for you now. Ask other peers, or come again after this time."""

    retry_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUSY_MS)]


@cache
def reply_types(kind: type[Request[Any]]) -> tuple[type[Message], ...]:
    """The messages that answer requests of this kind."""
    (named,) = get_args(kind.__orig_bases__[0])  # type: ignore[attr-defined]  # of the class statement: Request[named]
    return get_args(named) or (named,)
