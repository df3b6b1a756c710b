"""When a run has come to its target, by its specification: steps, tokens, or a loss. It then ends everywhere, by itself.

    OPEN -> REACHED   this peer sees it: the run's step or tokens are there, or the loss has been there for HOLD_S
    OPEN -> REACHED   more than half of the members say that they have seen it, and this peer trains with them

Can never happen: a run that has reached its target is open again. Members decide by themselves, from what all announce. Those
that see it late follow the others, so that none trains on alone.
"""

import statistics
from collections.abc import Sequence

import msgspec

HOLD_S = 30.0  # of a loss: single batches are far from the mean, and members announce a smoothed loss every few seconds
MIN_MEMBERS_AGREE = 2  # one other member that says so may lie, or train on something easier


class RunTarget(msgspec.Struct, frozen=True):
    """What a run is to come to; 0: that is no target. Whichever comes first ends it."""

    steps: int = 0
    tokens: int = 0
    loss: float = 0.0

    @property
    def is_open_ended(self) -> bool:
        return not (self.steps or self.tokens or self.loss)

    def done(self, step: int, tokens: int) -> float:
        """The share of a run that is over when it has come to this, at most 1. 0 where only a loss ends it, or nothing."""
        shares = (count / goal for count, goal in ((step, self.steps), (tokens, self.tokens)) if goal)
        return min(1.0, max(shares, default=0.0))


class RunProgress(msgspec.Struct, frozen=True):
    """How far a run is, as one member sees it."""

    step: int = 0
    tokens: int = 0
    losses: tuple[float, ...] = ()
    """Of the members that train, as they announce them."""

    @property
    def loss(self) -> float | None:
        """The median of the members: one that lies moves it little."""
        return statistics.median(self.losses) if self.losses else None


class TargetWatch:
    """Whether the target is reached, as one member knows."""

    def __init__(self, target: RunTarget) -> None:
        self.target = target
        self.reason = ""
        """What was reached, in words; empty while the run is open."""
        self._low_since: float | None = None

    @property
    def reached(self) -> bool:
        return bool(self.reason)

    def look(self, run: RunProgress, others: Sequence[bool], now: float) -> bool:
        """Whether it is reached now. `others`: what each of the other members says of it."""
        if not self.reached:
            self.reason = self._own(run, now) or self._by_others(others)
        return self.reached

    def _own(self, run: RunProgress, now: float) -> str:
        target = self.target
        if target.steps and run.step >= target.steps:
            return f"the run has made its {target.steps:,} steps"
        if target.tokens and run.tokens >= target.tokens:
            return f"the run has trained its {target.tokens:,} tokens"
        if not target.loss or run.loss is None or run.loss > target.loss:
            self._low_since = None
            return ""
        if self._low_since is None:
            self._low_since = now
        return f"the run has come to a loss of {target.loss:g}" if now - self._low_since >= HOLD_S else ""

    def _by_others(self, others: Sequence[bool]) -> str:
        if self.target.is_open_ended:  # nobody can end a run that has no target
            return ""
        n_say = sum(others)
        agreed = n_say >= MIN_MEMBERS_AGREE and 2 * n_say > len(others)
        return "the run has reached its target, as most members say" if agreed else ""
