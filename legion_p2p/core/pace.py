"""How many local steps a peer does between two pushes, so that fast and slow peers push at about the same moment.

The period of a round is `local_steps` of a peer of median speed. Each peer computes it from the announced seconds per step, and
does as many of its own steps as fit (the dynamic local updates of Liu et al. 2024, arXiv 2401.09135).
"""

import math
import statistics
from collections.abc import Iterable, Sequence

LEAST_ROUND_S = 0.1  # that a ramp makes rounds: more frequent ones cost the machine more than they help training
JOINED_ROUND_S = 10.0  # longer than it takes to see how fast a transfer goes
MAX_SPEEDUP = 8  # a peer eight times the median does eight times the steps; beyond that it would drift too far


def ramped(first: int, last: int, ramp_steps: int, run_step: int) -> int:
    """Local steps at a step of the run: from `first` to `last` over `ramp_steps` steps of the run, growing by equal factors."""
    if run_step >= ramp_steps:
        return last
    grown: float = first * (last / first) ** (run_step / ramp_steps)
    return max(1, round(grown))


def at_least(reference: int, last: int, step_s: Iterable[float]) -> int:
    """Local steps of a ramp that has come to `reference` on its way to `last`: no round shorter than LEAST_ROUND_S for it."""
    measured = [s for s in step_s if s > 0]
    if reference >= last or not measured:
        return reference
    return min(last, max(reference, math.ceil(LEAST_ROUND_S / statistics.median_low(measured))))


def local_steps(reference: int, own_step_s: float, others_step_s: Iterable[float], least: int = 1, most: int = 100_000) -> int:
    """Steps until the next push: `reference` scaled by this peer's speed relative to the median, from `least` to `most`.

    Seconds per step of 0 mean that nothing was measured yet.
    """
    measured = [s for s in (own_step_s, *others_step_s) if s > 0]
    if own_step_s <= 0 or len(measured) < 2:
        return min(max(reference, least), most)
    period_s = reference * statistics.median_low(measured)  # of two peers the quicker one: the slow one does less
    return min(max(round(min(period_s / own_step_s, MAX_SPEEDUP * reference)), least), most)


def while_joined(steps: int, own_step_s: float, most: int) -> int:
    """Steps of a lone peer that another one joins, until it is known how fast that one fetches: it may be over a slow link, on
    which a shard has to be fetched again if a dozen versions are made of it meanwhile. From `steps` to `most`.
    """
    return min(max(steps, math.ceil(JOINED_ROUND_S / own_step_s)), most) if own_step_s > 0 else steps


def run_step(own: int, others: Sequence[int]) -> int:
    """Steps of the run: those that this peer has counted, or what most of the others announce, if that is more.

    The highest announcement is not believed: newcomers take the step over and announce it, so that one lie would stay.
    """
    return max(own, statistics.median_low(others) if others else 0)


class Ewma:
    """An exponentially weighted mean: the newest value counts `weight`."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.value: float | None = None

    def add(self, value: float) -> float:
        self.value = value if self.value is None else self.value + self.weight * (value - self.value)
        return self.value
