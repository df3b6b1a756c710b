"""How fast a peer's connection has proved to be, from the transfers that it makes anyway.

Transfers overlap: what counts is all their bytes over the time in which any of them moved. Small ones tell of the delay, not of
the rate, and are left out.

    idle -> busy, when a transfer begins
    busy -> idle, when the last one ends; -> a sample, when enough bytes moved in enough time

A transfer ends when the other side confirms it: the wait for that is no time in which anything moved. Nor is the time of one that
failed. So a sample may be too low (the other was slow, or its link is the narrower one), and is hardly ever too high: upwards
the best of the last samples holds. A reader that was held up finds bytes that came long before, so that a sample may be too high
as well: downwards the median holds.
"""

import statistics
from collections import deque

MIN_TRANSFER_BYTES = 16 << 10  # 10 ms at 13 Mbit/s; what is smaller measures the delay
MIN_SAMPLE_BYTES = 32 << 10
MIN_SAMPLE_S = 0.02  # shorter is within what a busy machine makes of any duration
MAX_SAMPLE_S = 2.0  # a transfer that goes on and on is looked at so often: others wait for what it shows of a slow link
WINDOW_S = 180.0  # samples older than this are of another time of day, or another network; some rounds long
MAX_SAMPLES = 64


class RateEstimator:
    """The rate of one direction."""

    def __init__(self, *, best: bool, n_samples: int = 1) -> None:
        """`best`: the highest sample of the window holds; else the median. `n_samples`: how many it takes, because a transfer may
        have stood still for a while."""
        self._best = best
        self._least_samples = n_samples
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        self._n_active = 0
        self._since = 0.0
        self._spans: list[tuple[float, float]] = []
        self._busy_s = 0.0
        self._n_bytes = 0

    @property
    def is_busy(self) -> bool:
        """A transfer is under way."""
        return self._n_active > 0

    def begin(self, now: float) -> None:
        """A transfer is under way. Call `end` for each."""
        if not self._n_active:
            self._since = now
        self._n_active += 1

    def moved(self, n_bytes: int, now: float) -> None:
        """Bytes of a transfer under way have come through."""
        self._n_bytes += n_bytes
        if now - self._since >= MAX_SAMPLE_S:
            self._spans, self._busy_s, self._since = [], self._busy_s + now - self._since, now
            self._sample(now)

    def end(self, now: float, began: float | None, waited_s: float = 0.0) -> None:
        """It is over; None: it failed. `waited_s`: at the end, for the confirmation, while nothing moved."""
        self._n_active -= 1
        if began is not None:
            self._spans.append((began, now - waited_s))
        if not self._n_active:
            self._busy_s += _union(self._spans, self._since)
            self._spans = []
            self._sample(now)

    def rate_bps(self, now: float) -> float | None:
        """Bits per second; None: not enough was measured lately."""
        rates = [rate for at, rate in self._samples if now - at <= WINDOW_S]
        if len(rates) < self._least_samples:
            return None
        return max(rates) if self._best else statistics.median(rates)

    def _sample(self, now: float) -> None:
        if self._n_bytes >= MIN_SAMPLE_BYTES and self._busy_s >= MIN_SAMPLE_S:
            self._samples.append((now, 8 * self._n_bytes / self._busy_s))
            self._n_bytes, self._busy_s = 0, 0.0


def _union(spans: list[tuple[float, float]], since: float) -> float:
    """How much time is in any of them, from `since` on."""
    length_s = 0.0
    for began, ended in sorted(spans):
        length_s += max(0.0, ended - max(began, since))
        since = max(since, ended)
    return length_s
