"""How long until a run reaches its target of steps or tokens: a range, or unknown.

The rate of the last WINDOW_S is measured in PIECES of equal length. The slowest and the fastest of them bound the time left:
members come and go, and nothing is known of the future but what the recent past did. When a loss is reached cannot be told.
"""

from collections import deque
from itertools import pairwise

import msgspec

WINDOW_S = 600.0  # longer remembers members that have left, shorter makes the range jump
PIECES = 4
MIN_PIECE_S = 10.0  # shorter ones hold a few steps only
EVERY_S = 2.0  # between two samples: 300 of them at most
MAX_ETA_S = 10 * 365 * 86400.0  # beyond, a range says nothing


class TimeLeft(msgspec.Struct, frozen=True):
    """Seconds until the target, at least and at most."""

    least_s: float
    most_s: float


class EtaEstimator:
    """Samples of one count that grows."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def count(self, value: float, now: float) -> None:
        """The count is `value` now."""
        if self._samples and now - self._samples[-1][0] < EVERY_S:
            return
        if self._samples and value < self._samples[-1][1]:  # the run's count was corrected: what came before is of no use
            self._samples.clear()
        self._samples.append((now, value))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    def left(self, goal: float) -> TimeLeft | None:
        """How long until `goal`; None: unknown, because too little was seen, or nothing moves."""
        if not self._samples:
            return None
        (first_at, _), (last_at, last) = self._samples[0], self._samples[-1]
        if last >= goal:
            return TimeLeft(0.0, 0.0)
        piece_s = (last_at - first_at) / PIECES
        if piece_s < MIN_PIECE_S:
            return None
        marks = [self._value_at(first_at + i * piece_s) for i in range(PIECES)] + [last]
        rates = [(after - before) / piece_s for before, after in pairwise(marks)]
        if min(rates) <= 0 or (goal - last) / min(rates) > MAX_ETA_S:
            return None
        return TimeLeft((goal - last) / max(rates), (goal - last) / min(rates))

    def _value_at(self, at: float) -> float:
        """Straight from sample to sample."""
        before = self._samples[0]
        for sample in self._samples:
            if sample[0] >= at:
                (t0, v0), (t1, v1) = before, sample
                return v1 if t1 <= t0 else v0 + (v1 - v0) * (at - t0) / (t1 - t0)
            before = sample
        return before[1]
