"""What an owner that stops being one gives to the next one, and when that is done.

    IDLE        nothing to give
    GIVING      a part is on its way to `target`
    CONFIRMING  a peer that leaves asks `target` whether it holds the newest version: no other peer may have it yet
    LOOKING     an attempt failed: learn from `target` who owns the shard now
    PAUSING     until the next attempt
    ENDED       everything has arrived, or is kept, or is lost with this peer

    GIVING     -> GIVING, CONFIRMING   a part arrived
    GIVING, CONFIRMING -> LOOKING      no answer, a refusal, or an older version there
    LOOKING    -> PAUSING              it has told what it knows, or not
    PAUSING    -> GIVING, CONFIRMING   the pause is over
    any        -> ENDED                all arrived; no peer is there to own the shard; no attempt is left; it is ours again

A peer that stays in the run keeps what cannot be given, and tries only while the next owner says no, which it does while it
catches up. A peer that leaves tries for as long as others need to learn who leaves and who does not.

Never happens: a part is given to another peer after it arrived; it goes on after MAX_ATTEMPTS failures; it ends silently.
"""

from collections import deque
from enum import Enum

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.life_events import Owners, Shared
from legion_p2p.core.wire import Part

AGAIN_S = 0.2  # between two attempts
MAX_ATTEMPTS = 50  # some 10 s: time for all to learn who leaves and who does not
ATTEMPTS_OF_ONE_THAT_STAYS = 5  # time for a newcomer to catch up with what it owns from now on


class HandoverState(Enum):
    IDLE = "idle"
    GIVING = "giving"
    CONFIRMING = "confirming"
    LOOKING = "looking"
    PAUSING = "pausing"
    ENDED = "ended"


# events


class Begun(msgspec.Struct, frozen=True):
    """This peer has given up the shard at `version`, and has these parts to give: what matters most comes first."""

    version: int
    parts: tuple[Part, ...]


class Leaving(msgspec.Struct, frozen=True):
    """This peer is leaving the run."""


class Given(msgspec.Struct, frozen=True):
    """The part has arrived."""


class Holds(msgspec.Struct, frozen=True):
    """The next owner is at this version."""

    version: int


class NotGiven(msgspec.Struct, frozen=True):
    """The last effect failed. `may_change`: the other side said no, which it may not say again."""

    reason: str
    may_change: bool = False


class Looked(msgspec.Struct, frozen=True):
    """`Look` has been carried out."""


# effects


class Give(msgspec.Struct, frozen=True):
    """Send the part to `target`; then `Given` or `NotGiven`."""

    target: PeerId
    part: Part


class Confirm(msgspec.Struct, frozen=True):
    """Ask `target` for its version; then `Holds` or `NotGiven`."""

    target: PeerId


class Look(msgspec.Struct, frozen=True):
    """Learn from `target` who is in the run: it may be leaving, too, or not know yet that we do. Then `Owners`, `Looked`."""

    target: PeerId


class Ended(msgspec.Struct, frozen=True):
    """It is over. `left`: what no other peer has."""

    target: PeerId | None
    left: tuple[Part, ...]
    reason: str = ""
    """Why it failed; empty where everything has arrived."""


Event = Shared | Begun | Leaving | Given | Holds | NotGiven | Looked
Effect = Give | Confirm | Look | Ended


class Handover:
    """One hand-over of a shard at a time."""

    def __init__(self, me: PeerId) -> None:
        self.state = HandoverState.IDLE
        self.left: tuple[Part, ...] = ()
        """Parts that have not arrived."""
        self._me = me
        self._owner: PeerId | None = None
        self._target: PeerId | None = None
        self._version = 0
        self._is_leaving = False
        self._n_failed = 0
        self._again_at = 0.0
        self._effects: deque[Effect] = deque()

    @property
    def is_under_way(self) -> bool:
        return self.state not in (HandoverState.IDLE, HandoverState.ENDED)

    def handle(self, event: Event, now: float) -> None:
        """Take in what happened. What is not an answer to the last effect changes nothing."""
        match event:
            case Begun(version, parts):
                if not self.is_under_way:
                    self._version, self.left, self._n_failed = version, parts, 0
                    self._attempt()
            case Owners(owners):
                self._owner = owners.owner
            case Leaving():
                self._is_leaving = True
            case Given():
                if self.state is HandoverState.GIVING:
                    self.left = self.left[1:]
                    self._go_on()
            case Holds(version):
                if self.state is HandoverState.CONFIRMING:
                    if version >= self._version:
                        self._end()
                    else:
                        self._failed(f"it is still at version {version}", may_change=True)
            case NotGiven(reason, may_change):
                if self.state in (HandoverState.GIVING, HandoverState.CONFIRMING):
                    self._failed(reason, may_change)
            case Looked():
                if self.state is HandoverState.LOOKING:
                    self.state, self._again_at = HandoverState.PAUSING, now + AGAIN_S

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        if self.state is HandoverState.PAUSING and now >= self._again_at:
            self._attempt()

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None while only an event changes anything."""
        return self._again_at if self.state is HandoverState.PAUSING else None

    def poll(self) -> Effect | None:
        """The next thing to do; None when there is nothing."""
        return self._effects.popleft() if self._effects else None

    # inner steps

    def _attempt(self) -> None:
        self._target = self._owner
        if self._target is None or self._target == self._me:
            self._end("no other peer is there to own it")
        else:
            self._go_on()

    def _go_on(self) -> None:
        assert self._target is not None
        if self.left:
            self.state = HandoverState.GIVING
            self._effects.append(Give(self._target, self.left[0]))
        elif self._is_leaving:
            self.state = HandoverState.CONFIRMING
            self._effects.append(Confirm(self._target))
        else:
            self._end()

    def _failed(self, reason: str, may_change: bool) -> None:
        assert self._target is not None
        self._n_failed += 1
        stays_out = not self._is_leaving and (self._n_failed > ATTEMPTS_OF_ONE_THAT_STAYS or not may_change)
        if stays_out or self._n_failed >= MAX_ATTEMPTS:
            self._end(reason)
            return
        self.state = HandoverState.LOOKING
        self._effects.append(Look(self._target))

    def _end(self, reason: str = "") -> None:
        self.state = HandoverState.ENDED
        self._effects.append(Ended(self._target, self.left, reason))
