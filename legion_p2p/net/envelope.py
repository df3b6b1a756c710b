"""Frames between two messengers, as bytes.

```
u32 length of what follows | u16 length of the envelope | envelope | body
```
The envelope is a MessagePack array whose first two entries are, in every version for ever, the version and the request's id; so a
peer can refuse a version that it does not know by name. The body follows raw: a shard of 64 MiB is neither copied nor parsed.

The side that opened the stream sends REQUEST and PING; the other REPLY, REFUSAL and PONG. Anything else is misbehaviour.
"""

import struct
from enum import IntEnum

import msgspec

from legion_p2p.errors import DecodeError
from legion_p2p.net.limits import MAX_BULK_FRAME_BYTES, MAX_CONTROL_FRAME_BYTES

VERSION = 5
OTHER_VERSION = "UnknownVersionError"  # how a refusal of a version is called, in every version for ever
HEAD = struct.Struct(">IH")
MAX_ENVELOPE_BYTES = 2048  # a reason of MAX_REASON_CHARS in the worst encoding, and the fixed fields
MAX_REASON_CHARS = 400
MAX_FRAME_BYTES = {"control": MAX_CONTROL_FRAME_BYTES, "bulk": MAX_BULK_FRAME_BYTES}


class FrameKind(IntEnum):
    """What a frame is."""

    REQUEST = 0
    REPLY = 1
    REFUSAL = 2
    PING = 3
    PONG = 4


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What stands before the body."""

    version: int
    id: int
    kind: FrameKind
    service: str = ""
    """What answers a request: "" the application's handler, otherwise a part of the network layer itself."""
    error: str = ""
    """Of a refusal: its kind, in one word."""
    reason: str = ""
    again: str = ""
    """Of a request that was sent whole on a bulk lane, which broke before the reply: by what the other side knows it there. It is
    not carried out a second time."""


class UnknownVersion(Exception):  # not an error of either side
    """The envelope is of a version that this side does not speak."""

    def __init__(self, version: int, request_id: int) -> None:
        self.version = version
        self.request_id = request_id
        super().__init__(
            f"version {version} of the protocol, this side speaks {VERSION}: the older of the two needs a newer legion_p2p"
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(envelope: Envelope, body_bytes: int) -> bytes:
    """The bytes that go before a body of this size."""
    packed = _encoder.encode(envelope)
    return HEAD.pack(2 + len(packed) + body_bytes, len(packed)) + packed


def check_head(head: bytes, lane: str) -> tuple[int, int]:
    """The sizes that a frame's first 6 bytes announce: (envelope, body).

    Raises: DecodeError, if they are impossible or larger than allowed on this lane.
    """
    length, envelope_bytes = HEAD.unpack(head)
    if length > MAX_FRAME_BYTES[lane]:
        raise DecodeError(f"frame of {length} bytes on the {lane} lane, limit is {MAX_FRAME_BYTES[lane]}")
    if not 1 <= envelope_bytes <= min(MAX_ENVELOPE_BYTES, length - 2):
        raise DecodeError(f"envelope of {envelope_bytes} bytes in a frame of {length}")
    return envelope_bytes, length - 2 - envelope_bytes


def decode(packed: bytes) -> Envelope:
    """The envelope.

    Raises: UnknownVersion; DecodeError, if it is none.
    """
    try:
        fields = msgspec.msgpack.decode(packed)
        version, request_id = fields[:2]
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, RecursionError) as bad:
        raise DecodeError("not an envelope") from bad
    if type(version) is not int or type(request_id) is not int or not 0 <= request_id < 1 << 63:
        raise DecodeError("an envelope without version and id")
    if version != VERSION:
        raise UnknownVersion(version, request_id)
    try:
        return _decoder.decode(packed)
    except (msgspec.DecodeError, RecursionError) as bad:
        raise DecodeError(f"not an envelope of version {VERSION}: {bad}") from bad


def refusal(request_id: int, error: str, reason: str) -> Envelope:
    """Says no, and why, at most MAX_REASON_CHARS of it."""
    return Envelope(VERSION, request_id, FrameKind.REFUSAL, error=error[:64], reason=reason[:MAX_REASON_CHARS])
