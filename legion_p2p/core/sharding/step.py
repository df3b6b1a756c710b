"""The steps of one unit at its owner: whose gradients each is made with.

    COLLECTING -> CLOSED      all members that are waited for have pushed, or a quorum and a grace period is over (core/round.py)
    CLOSED     -> COLLECTING  the step is made: the next one is collected for

A gradient belongs to one step. One that comes for the step that is being collected is taken; for the step that is closed or made
it is late, and is told whether it is in there: one that is sent again after its answer was lost counts once.

Never happens: a gradient counts in two steps, or twice in one; a step is made with nothing; a member that is not in a step is
told that it is.
"""

from collections.abc import Iterable, Mapping
from enum import Enum

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Contribution, RoundConfig, ShardRound

REMEMBERED = 4  # steps: a member asks about the last one, or where the answer was lost about the one before


class GradientVerdict(Enum):
    """What became of a gradient that arrived."""

    TAKEN = "taken"
    """It is in the step that is being collected for: its sender is answered when that is made."""
    REPEATED = "repeated"
    """As taken, and it was here already."""
    LATE = "late"
    """Its step is closed, or made already."""
    AHEAD = "ahead"
    """Of a step that this owner has not reached: another peer owns the unit."""


class UnitSteps:
    """What an owner knows of the step that comes next, and of the last one."""

    def __init__(self, config: RoundConfig, version: int, included: Iterable[PeerId] = ()) -> None:
        """`version`: steps that were made; `included`: whose gradients are in the last one."""
        self.version = version
        self._included = {version - 1: frozenset(included)}
        self.is_closed = False
        self._round = ShardRound(config, version, {})

    def expect(self, began_at: Mapping[PeerId, int], now: float) -> None:
        """These members are training, each since a step of the run: they are waited for from that step on."""
        self._round.expect((peer for peer, step in began_at.items() if step <= self.version), now)

    def push(self, peer: PeerId, step: int, tokens: int, now: float) -> GradientVerdict:
        """A gradient arrived."""
        if step > self.version:
            return GradientVerdict.AHEAD
        if step < self.version or self.is_closed:
            return GradientVerdict.LATE
        before = len(self._round.waiting)
        self._round.push(Contribution(peer, step, step, tokens, now), now)
        return GradientVerdict.TAKEN if len(self._round.waiting) > before else GradientVerdict.REPEATED

    def was_included(self, peer: PeerId, step: int) -> bool:
        """Whether this step, if it is one of the last REMEMBERED, was made with a gradient of `peer`."""
        return peer in self._included.get(step, ())

    @property
    def included(self) -> frozenset[PeerId]:
        """Whose gradients the last step was made with."""
        return self._included[self.version - 1]

    def refused(self, peer: PeerId, reason: str) -> None:
        """Its gradient was not usable."""
        self._round.refused(peer, reason)

    def ready(self, now: float) -> bool:
        """The step should be closed now."""
        return not self.is_closed and self._round.ready(now)

    def next_deadline(self) -> float | None:
        """When it is to be closed if nothing else comes; None: not before something does."""
        return None if self.is_closed else self._round.next_deadline()

    def close(self, now: float) -> tuple[Contribution, ...]:
        """What the step is to be made with, by peer."""
        self.is_closed = True
        return self._round.close(now).contributions

    def made(self, included: Iterable[PeerId]) -> None:
        """The step is made, with the gradients of these."""
        self._included[self.version] = frozenset(included)
        self._included.pop(self.version - REMEMBERED, None)
        self.version += 1
        self.is_closed = False
        self._round.advanced(self.version, ())
