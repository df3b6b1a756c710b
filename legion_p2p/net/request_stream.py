"""The requests under way on one stream, or on a lane: numbered, and answered in any order."""

from dataclasses import dataclass

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.spliced import Bytes
from legion_p2p.errors import UnreachableError
from legion_p2p.net.envelope import VERSION, Envelope, FrameKind, encode
from legion_p2p.net.frames import FrameStream, Outgoing

PING_INTERVAL_S = 2.0  # a control request is accompanied by a ping unless there was one so shortly before
LANE_IDLE_S = 30.0  # a lane that is not used is closed before a NAT forgets it, which some do after 60 s


@dataclass(frozen=True)
class StreamKey:
    """Which stream it is: at most one of each is open."""

    peer: PeerId
    lane: str
    on_lane: bool = False
    """A connection of its own, not a stream of the libp2p connection."""


class PendingRequest:
    """A request that waits for its reply."""

    __slots__ = ("done", "error", "frame", "id", "reply")

    def __init__(self, request_id: int, frame: Outgoing) -> None:
        self.id = request_id
        self.frame = frame
        self.done = trio.Event()
        self.reply = b""
        self.error: Exception | None = None


class RequestStream:
    """The stream that this side opens to a peer on a lane, from the first request to its end."""

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.peer = key.peer
        self.lane = key.lane
        self.ticket = ""
        """Names the connection, where it is one of its own."""
        self.began_at = trio.current_time()
        self.used_at = self.began_at
        self.is_idle = False
        """It was ended because there was nothing to send for long."""
        self.opened = trio.Event()
        """Set when `frames` is there, or `reason` says why it is not."""
        self.frames: FrameStream | None = None
        self.relayed = False
        self._retired = False
        self.reason = "this peer is leaving"
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self.pending: dict[int, PendingRequest] = {}
        self.last_id = 0
        self.ping_id = 0
        self.ping_frame: Outgoing | None = None
        self.ping_sent_at = float("-inf")

    def send(self, service: str, body: Bytes, priority: Priority, again: str = "") -> PendingRequest:
        """Queue a request, and now and then a ping before it. The stream is open. `again`: see `Envelope`."""
        frames = self.frames
        assert frames is not None
        now = trio.current_time()
        if self.lane == "control" and now - self.ping_sent_at > PING_INTERVAL_S and not len(frames):
            self.last_id += 1
            self.ping_id = self.last_id
            self.ping_sent_at = now
            self.ping_frame = frames.put(encode(Envelope(VERSION, self.ping_id, FrameKind.PING), 0))
        self.last_id += 1
        self.used_at = now
        head = encode(Envelope(VERSION, self.last_id, FrameKind.REQUEST, service=service, again=again), len(body))
        pending = PendingRequest(self.last_id, frames.put(head, body, priority))
        if pending.frame.done.is_set():  # the stream has ended between opening and now
            pending.error = self._broken()
            pending.done.set()
        else:
            self.pending[pending.id] = pending
        return pending

    def forget(self, pending: PendingRequest) -> None:
        """Its asker has the reply, or gave up. If it was not begun yet, it is not sent at all."""
        pending.frame.abandoned = not pending.frame.begun
        self.used_at = trio.current_time()
        self.pending.pop(pending.id, None)
        if self._retired and not self.pending:
            self.scope.cancel()

    def retire(self) -> None:
        """Nothing more is sent on it: it ends when what waits for a reply has it."""
        self._retired = True
        if not self.pending:
            self.scope.cancel()

    async def wait_until_idle(self) -> None:
        """Return once nothing was asked for LANE_IDLE_S."""
        while True:
            now = trio.current_time()
            idle_at = (now if self.pending else self.used_at) + LANE_IDLE_S
            if idle_at <= now:
                break
            await trio.sleep_until(idle_at)
        self.is_idle = True

    def fail(self) -> None:
        """Tell everybody who waits that it is over."""
        if self.frames is not None:
            self.frames.end()
        self.opened.set()
        for pending in tuple(self.pending.values()):
            pending.error = self._broken()
            pending.done.set()
        self.pending.clear()

    def _broken(self) -> Exception:
        return self.error or UnreachableError(self.peer, self.reason)
