"""What peers say to each other: requests and their replies, as MessagePack maps.

The messages themselves are in core/messages, by conversation. Every field has a bound. Decoding checks types and bounds before
anything is used; what does not fit raises DecodeError, and the peer that sent it is to blame. `type` names the message, so that
any MessagePack reader can follow.
"""

import secrets
from collections.abc import Iterable
from functools import cache, reduce
from operator import or_
from typing import Any, Generic, TypeVar, cast

import msgspec

from legion_p2p.core.messages.base import (
    MAX_BUSY_MS,
    MAX_COUNT,
    MAX_PAYLOAD_BYTES,
    Busy,
    Done,
    Message,
    Payload,
    Request,
    reply_types,
)
from legion_p2p.core.messages.blocks import (
    MAX_BLOCKS_BYTES,
    MAX_CHECKPOINTS,
    MAX_COMPARED,
    MAX_GET_CIDS,
    MAX_HAS_CIDS,
    OTHER,
    UNKNOWN,
    AncestryQuery,
    AncestryReply,
    Blocks,
    Checkpoints,
    GetBlocks,
    GetCheckpoints,
    HasBlocks,
    HeldBlocks,
    State,
)
from legion_p2p.core.messages.evidence import (
    Cosign,
    Cosigned,
    Equivocation,
    Evidence,
    GetInput,
    InputPart,
    Miscount,
    Omission,
    PushClaim,
    Receipt,
    SignedHeader,
)
from legion_p2p.core.messages.exam import Answers, GetAnswers
from legion_p2p.core.messages.members import (
    MAX_EXCHANGED,
    MAX_KNOWN_MEMBERS,
    Accusation,
    Exchange,
    Exchanged,
    GetRuns,
    GetSpec,
    Ping,
    PingFor,
    RunsFound,
    RunSummary,
    SpecFound,
)
from legion_p2p.core.messages.regions import (
    MAX_NORM,
    GetRepresentative,
    RelayRequest,
    RepresentativeFound,
    SyncReply,
    SyncRequest,
    Unknown,
)
from legion_p2p.core.messages.sharding import (
    MAX_STEP_MEMBERS,
    MAX_UNIT_PARTS,
    AppointUnit,
    AskNorms,
    AskUnit,
    MakeStep,
    PullUnit,
    PushGradient,
    PutUnit,
    ReplicateMove,
    ReplicateStep,
    UnitElsewhere,
    UnitHeld,
    UnitNorms,
    UnitRole,
    UnitStepped,
    UnitWeights,
)
from legion_p2p.core.messages.shards import (
    MAX_INCLUDED,
    MAX_REASON_CHARS,
    MAX_UPDATES,
    Cosignature,
    CosignedHeader,
    Failure,
    GetMarks,
    GetShard,
    GetUpdates,
    GetVersion,
    HandoverPart,
    Held,
    Inclusion,
    Made,
    Marks,
    NotOwner,
    Part,
    Push,
    Pushed,
    ShardState,
    Update,
    UpdateAccount,
    UpdateHeader,
    Updates,
    UpdatesMade,
)
from legion_p2p.core.spliced import Bytes, Spliced
from legion_p2p.errors import DecodeError, SelfCheckError

__all__ = [
    "MAX_BLOCKS_BYTES", "MAX_BUSY_MS", "MAX_CHECKPOINTS", "MAX_COMPARED", "MAX_COUNT", "MAX_EXCHANGED", "MAX_GET_CIDS",
    "MAX_HAS_CIDS", "MAX_INCLUDED", "MAX_KNOWN_MEMBERS", "MAX_NORM", "MAX_PAYLOAD_BYTES", "MAX_REASON_CHARS",
    "MAX_STEP_MEMBERS", "MAX_UNIT_PARTS", "MAX_UPDATES", "OTHER", "REQUESTS", "UNKNOWN", "Accusation", "AncestryQuery",
    "AncestryReply", "Answers", "AppointUnit", "AskNorms", "AskUnit", "Blocks", "Busy", "Checkpoints", "Cosign",
    "Cosignature", "Cosigned", "CosignedHeader", "Done", "Encoded", "Equivocation", "Evidence", "Exchange", "Exchanged",
    "Failure", "GetAnswers", "GetBlocks", "GetCheckpoints", "GetInput", "GetMarks", "GetRepresentative", "GetRuns",
    "GetShard", "GetSpec", "GetUpdates", "GetVersion", "HandoverPart", "HasBlocks", "Held", "HeldBlocks", "Inclusion",
    "InputPart", "Made", "MakeStep", "Marks", "Message", "Miscount", "NotOwner", "Omission", "Part", "Ping", "PingFor",
    "PullUnit", "Push", "PushClaim", "PushGradient", "Pushed", "PutUnit", "Receipt", "RelayRequest", "ReplicateMove",
    "ReplicateStep", "RepresentativeFound", "Request", "RunSummary", "RunsFound", "ShardState", "SignedHeader", "SpecFound",
    "State", "SyncReply", "SyncRequest", "UnitElsewhere", "UnitHeld", "UnitNorms", "UnitRole", "UnitStepped", "UnitWeights",
    "Unknown", "Update", "UpdateAccount", "UpdateHeader", "Updates", "UpdatesMade", "decode_header", "decode_request",
    "decode_with", "decoder_of", "encode", "encode_checked", "encode_struct", "encode_to_send", "reply_types",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")

SPLICED_FROM_BYTES = 1 << 16  # a shorter payload is copied in less time than its message takes to be sent in parts
ALIGNED_BYTES = 4  # of a payload's place in its message, so that its receiver can compute with fp32 values where they lie
_KEY = b"payload"

REQUESTS: tuple[type[Request[Any]], ...] = tuple(
    kind for kind in vars().values() if isinstance(kind, type) and issubclass(kind, Request) and kind is not Request
)
"""Every request of the protocol."""


def decoder_of(kinds: Iterable[type[Any]]) -> "msgspec.msgpack.Decoder[Any]":
    """Decodes messages of these kinds and no others."""
    return msgspec.msgpack.Decoder(reduce(or_, kinds))


_encoder = msgspec.msgpack.Encoder()
_decoder_of_one = cache(msgspec.msgpack.Decoder)
_reply_decoder = cache(lambda kind: decoder_of(reply_types(kind)))
_requests = decoder_of(REQUESTS)
_headers = msgspec.msgpack.Decoder(UpdateHeader)


def encode(message: Message | UpdateHeader) -> bytes:
    """The MessagePack bytes of a message. Nothing is checked: what goes to other peers passes `encode_checked`."""
    return _encoder.encode(message)


def encode_struct(value: msgspec.Struct) -> bytes:
    """The MessagePack bytes of a part of a message, to be signed."""
    return _encoder.encode(value)


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


def encode_to_send(message: Message) -> Bytes:
    """`encode_checked`, with a long payload left where it is. Raises: SelfCheckError."""
    payload: bytes | memoryview = message.payload if _carries_payload(type(message)) else b""  # type: ignore[attr-defined]
    if len(payload) < SPLICED_FROM_BYTES:
        return encode_checked(message)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise SelfCheckError(f"{type(message).__name__} with a payload of {len(payload)} bytes, limit is {MAX_PAYLOAD_BYTES}")
    place = secrets.token_bytes(16)  # found again for certain, whatever else the message contains
    body = encode_checked(msgspec.structs.replace(message, payload=place))
    before, _, after = body.partition(place)
    return Spliced(_before_payload(before, len(payload)), payload, after)


@cache
def _carries_payload(kind: type[Message]) -> bool:
    return any(field.name == "payload" and field.type == Payload for field in msgspec.structs.fields(kind))


def _before_payload(before: bytes, n_bytes: int) -> bytes:
    """What stands before a payload of `n_bytes`, made out of `before`, which stands before one of 16.

    A length may take more bytes than it needs, so that the payload comes to lie at a multiple of ALIGNED_BYTES.
    """
    head, key = before[: -len(_KEY) - 3], before[-len(_KEY) - 3 : -2]
    assert key == bytes([0xA0 | len(_KEY)]) + _KEY and head[0] & 0xF0 == 0x80  # how msgspec writes a map of less than 16 fields
    length = b"\xc6" + n_bytes.to_bytes(4, "big")
    missing = -(len(before) - 2 + len(length)) % ALIGNED_BYTES
    if missing == 3:
        head = bytes([0xDE, 0, head[0] & 0x0F]) + head[1:]
    key_length = {0: key[:1], 1: b"\xd9\x07", 2: b"\xda\x00\x07", 3: b"\xd9\x07"}[missing]
    return head + key_length + _KEY + length


class Encoded(Generic[R]):
    """A request as bytes, so that one that goes to many peers is encoded once."""

    def __init__(self, request: Request[R]) -> None:
        self.kind = type(request)
        self.body = encode_to_send(request)

    def decode_reply(self, data: bytes) -> R:
        """The reply to it. Raises: DecodeError, also where the message is of a type that does not answer it."""
        return cast("R", decode_with(_reply_decoder(self.kind), data, f"reply to {self.kind.__name__}"))


def decode_request(data: bytes) -> Request[Any]:
    """Raises: DecodeError."""
    return cast("Request[Any]", decode_with(_requests, data, "request"))


def decode_header(data: bytes) -> UpdateHeader:
    """Raises: DecodeError."""
    return decode_with(_headers, data, "update header")


def decode_with(decoder: "msgspec.msgpack.Decoder[T]", data: bytes, what: str) -> T:
    """Raises: DecodeError, whatever is wrong with `data`; it calls it `what`."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise DecodeError(f"{what} of {len(data)} bytes: {bad}") from bad
