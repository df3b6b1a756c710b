"""Differential privacy of what a peer pushes: the settings, and what has been spent.

A round of this peer is one release of the Gaussian mechanism: the change of all shards together is at most `clip` long, and each
of its elements gets noise of `noise * clip` (McMahan et al., 1710.06963, at the peer itself). Shards are pushed one by one, so
each is clipped to its part of the length, `clip * sqrt(its elements / all elements)`, and costs its part of a round: Gaussian
releases compose exactly, by the sum of 1 / noise^2 (Dong, Roth and Su, 1905.02383).

What is protected is whether this peer's training text was used at all: two sets of text, one of them empty. Whatever is computed
from a release afterwards (compression, error feedback, averages, checkpoints) spends nothing more.
"""

import math

import msgspec

from legion_p2p.errors import UsageError

PRIVACY_FORM = "noise=1,clip=0.5,delta=1e-6"
MIN_NOISE = 0.5  # below it one round alone spends an epsilon of more than 11 at delta 1e-6, which promises nothing
MAX_NOISE = 1e6
MAX_CLIP = 1e6  # the same bound as for any finite length that a run can use
MAX_DELTA = 1e-3  # above it, publishing the text of one peer in a thousand would be allowed


class Privacy(msgspec.Struct, frozen=True):
    """What is done to each change before it is compressed."""

    noise: float
    """Standard deviation of the noise, in units of `clip`."""
    clip: float
    """Longest change of all shards together, in the units of the parameters."""
    delta: float
    """Probability with which the promise may fail."""

    def longest(self, numel: int, n_parameters: int) -> float:
        """The allowed length of a change of this many parameters."""
        return self.clip * math.sqrt(numel / n_parameters)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each element."""
        return self.noise * self.clip

    def cost(self, numel: int, n_parameters: int) -> float:
        """What one release of this many parameters adds to `Spent.total`."""
        return numel / n_parameters / self.noise**2


def parse_privacy(text: str) -> Privacy:
    """`noise=1,clip=0.5,delta=1e-6`. Raises: UsageError, also of settings that protect nothing."""
    given: dict[str, float] = {}
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if name not in Privacy.__struct_fields__ or not equals or name in given:
            raise UsageError(f"{word.strip()!r} is not understood in {text!r}: give {PRIVACY_FORM}")
        try:
            given[name] = float(value)
        except ValueError:
            raise UsageError(f"{name} {value!r} is not a number: give {PRIVACY_FORM}") from None
    if missing := [name for name in Privacy.__struct_fields__ if name not in given]:
        raise UsageError(f"{missing[0]} is missing in {text!r}: give {PRIVACY_FORM}")
    privacy = Privacy(**given)
    if not MIN_NOISE <= privacy.noise <= MAX_NOISE:
        raise UsageError(
            f"noise {privacy.noise:g}, must be {MIN_NOISE:g} to {MAX_NOISE:g}: with less, a single round spends an epsilon above "
            "11, which protects nothing"
        )
    if not 0 < privacy.clip <= MAX_CLIP:
        raise UsageError(f"clip {privacy.clip:g}, must be above 0 and at most {MAX_CLIP:g}")
    if not 0 < privacy.delta <= MAX_DELTA:
        raise UsageError(
            f"delta {privacy.delta:g}, must be above 0 and at most {MAX_DELTA:g}: it is the probability that the promise fails"
        )
    return privacy


class Spent(msgspec.Struct, frozen=True):
    """What was released of one run."""

    total: float = 0.0
    """Sum of 1 / noise^2 over all rounds, shards counting for their part of a round."""
    rounds: float = 0.0

    def plus(self, cost: float, rounds: float) -> "Spent":
        return Spent(self.total + cost, self.rounds + rounds)

    @property
    def noise(self) -> float:
        """The noise of a single release that would have cost as much; infinite where nothing was released."""
        return math.inf if self.total == 0 else 1 / math.sqrt(self.total)


NOTHING_SPENT = Spent()


class PrivacyBooks:
    """What a peer has spent in one run, and what must be written down before it may spend more.

    A peer that is killed may have pushed what it had not written down. So a round more than was spent is written down, and a
    peer begins with that when it is started again: it may count too much, never too little.
    """

    def __init__(self, written: Spent = NOTHING_SPENT) -> None:
        self.spent = written
        self.n_released = 0
        self.n_clipped = 0
        """Releases whose change was longer than allowed, since this peer started."""
        self._written = written

    def charge(self, cost: float, rounds: float) -> Spent | None:
        """A release is about to be made. What must be written down before it is sent; None: nothing."""
        self.spent = self.spent.plus(cost, rounds)
        if self.spent.total <= self._written.total:
            return None
        self._written = self.spent.plus(cost / rounds, 1.0)
        return self._written

    def released(self, clipped: bool) -> None:
        """It was made."""
        self.n_released += 1
        self.n_clipped += clipped

    @property
    def clipped_share(self) -> float:
        return self.n_clipped / self.n_released if self.n_released else 0.0
