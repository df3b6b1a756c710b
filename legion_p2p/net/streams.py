"""What both halves of a messenger make streams of: their protocols, and the parts that all of them share."""

import logging
from dataclasses import dataclass, field
from typing import cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.yamux.yamux import Yamux

from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.net.byte_streams import ByteStream, MuxedStream
from legion_p2p.net.counters import Counters
from legion_p2p.net.frames import FrameStream, UploadGate
from legion_p2p.net.netem import Shaper
from legion_p2p.net.peer_score import Refusals

RECV_WINDOW_BYTES = {"control": 1 << 18, "bulk": 8 << 20}  # 8 MiB fill 500 Mbit/s at 130 ms; grows no further than needed
PROTOCOLS = {lane: TProtocol(f"/legion/{lane}/2") for lane in ("control", "bulk")}

log = logging.getLogger("legion_p2p.net")


@dataclass(frozen=True)
class SharedParts:
    """What the client and the server of one peer have in common."""

    counters: Counters
    refusals: Refusals
    shaper: Shaper | None
    gate: UploadGate = field(default_factory=UploadGate)
    other_version: Observers[tuple[PeerId, str]] = field(default_factory=Observers)
    """Told of each peer that speaks another version of the protocol, and which, in words; as often as it is noticed."""

    def frames(self, stream: ByteStream, lane: str) -> FrameStream:
        """The frames of this lane on a stream."""
        due = None if self.shaper is None else self.shaper.lane(lane)
        return FrameStream(stream, lane, self.counters, self.gate, due)


def muxed(stream: NetStream, lane: str) -> MuxedStream:
    """A libp2p stream for this lane."""
    return MuxedStream(stream, RECV_WINDOW_BYTES[lane])


def connection_is_over(stream: INetStream) -> bool:
    """Whether the connection that carries it has broken or was closed, so that nobody is to blame for how the stream ends."""
    return cast(Yamux, stream.muxed_conn).event_shutting_down.is_set()


async def reset(stream: ByteStream) -> None:
    """End it, whatever state it is in."""
    with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
        try:
            await stream.reset()
        except Exception as failed:
            log.debug("resetting a stream: %r", failed)
