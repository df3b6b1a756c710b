"""A request under way in a simulated world, as both sides see it."""

from typing import Final

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.spliced import Bytes
from legion_p2p.net.envelope import VERSION, Envelope, FrameKind, encode

FRAME_BYTES: Final = len(encode(Envelope(VERSION, 1000, FrameKind.REQUEST), 0))  # of head and envelope, in the middle of a run
BREAK_AFTER_S = 30.0  # of packets that vanish, until TCP gives the connection up


class RequestOutcome:
    """What a request came to at the other side."""

    def __init__(self) -> None:
        self.reply = b""
        self.error: Exception | None = None
        self.priority = Priority.ROUND
        """Of the reply."""
        self._throttled: ThrottledReply[Bytes] | None = None
        self._is_over = False

    def throttle(self, reply: ThrottledReply[Bytes]) -> None:
        """The reply holds an upload slot until `over`."""
        self._throttled, self.priority = reply, reply.priority
        if self._is_over:
            reply.sent()

    def over(self) -> None:
        """The reply has arrived, or never will."""
        self._is_over = True
        if self._throttled is not None:
            self._throttled.sent()


class RequestUnderWay:
    """One request as its asker sees it, and its reply, or the error in its place."""

    def __init__(self, peer: PeerId, service: str, body: bytes, priority: Priority) -> None:
        """`peer`: the one that is asked."""
        self.peer = peer
        self.service = service
        self.body = body
        self.priority = priority
        self.begun_at = trio.current_time()
        self.outcome = RequestOutcome()
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        """Cancelled when the other side dies at work, or its kernel resets the connection."""
        self.reply = b""
        self.error: Exception | None = None
        self.is_handled = False
        """The other side is at work on it."""
        self.handled_s = 0.0
        """How long it was."""
        self.is_answered = False
        """The reply is on its way."""
        self.is_stopped = False
        """The other side died while it was at work on it: the asker learns of that by a reset."""

    def stop(self) -> None:
        """The other side has died: it does nothing more."""
        if self.is_handled:
            self.is_stopped = True
            self.scope.cancel()
