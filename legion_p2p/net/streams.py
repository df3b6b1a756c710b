"""What both halves of a messenger make streams of: their protocols, and the parts that all of them share."""

import logging
from dataclasses import dataclass, field

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.net.counters import Counters
from legion_p2p.net.frames import FrameStream, UploadGate
from legion_p2p.net.netem import Shaper
from legion_p2p.net.peer_score import Refusals

PROTOCOLS = {lane: TProtocol(f"/legion/{lane}/2") for lane in ("control", "bulk")}

log = logging.getLogger("legion_p2p.net")


@dataclass(frozen=True)
class SharedParts:
    """What the client and the server of one peer have in common."""

    counters: Counters
    refusals: Refusals
    shaper: Shaper | None
    gate: UploadGate = field(default_factory=UploadGate)

    def frames(self, stream: NetStream, lane: str) -> FrameStream:
        """The frames on a stream of this lane."""
        due = None if self.shaper is None else self.shaper.lane(lane)
        return FrameStream(stream, lane, self.counters, self.gate, due)


async def reset(stream: NetStream) -> None:
    """End it, whatever state it is in."""
    with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
        try:
            await stream.reset()
        except Exception as failed:
            log.debug("resetting a stream: %r", failed)
