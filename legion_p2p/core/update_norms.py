"""How long an update of a shard may be: a few times the median of those before it, which all that follow the chain know.

An owner alone decides what an update contains, and members check no more than that it leads to the digest that its owner
signed. So an owner could set its shards to anything, in one update. With this bound it can do no more harm in a round than a
few honest rounds do good. An honest owner whose step is longer (after an outage, or because regions come together) shortens it
and keeps the rest for the next updates, so that nobody refuses it.

Never happens: an update is refused by a peer that knows fewer than `MIN_KNOWN` before it; an owner that shortens by the same
updates makes one that is refused.
"""

import statistics
from collections import deque
from collections.abc import Iterable

MAX_KNOWN = 16  # updates that the median is of
MIN_KNOWN = 8
TIMES_MEDIAN = 4.0  # what is refused; honest steps of one run vary less from round to round
OWNERS_SHARE = 0.85  # of it that owners use: what a codec makes of a step may be longer than the step
MAX_KEPT = 16.0  # times the longest update that an owner keeps for later: error feedback of sparse codecs keeps some of it


class UpdateNorms:
    """The lengths of the newest updates of one shard."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=MAX_KNOWN)

    def add(self, norm: float) -> None:
        """An update was followed. Ones that change nothing say nothing."""
        if norm > 0:
            self._norms.append(norm)

    def replace(self, norms: Iterable[float]) -> None:
        """The shard was taken over whole, and these are the lengths of the updates that led to it."""
        self._norms = deque(norms, maxlen=MAX_KNOWN)

    def learn(self, norms: Iterable[float]) -> None:
        """Another peer says that these were the last ones. What this peer has seen itself counts more."""
        if len(self._norms) < MIN_KNOWN:
            self.replace(norms)

    def known(self) -> tuple[float, ...]:
        """The oldest first."""
        return tuple(self._norms)

    @property
    def longest(self) -> float | None:
        """How long an update may be; None while too few are known to tell."""
        return TIMES_MEDIAN * statistics.median(self._norms) if len(self._norms) >= MIN_KNOWN else None

    @property
    def owners_longest(self) -> float | None:
        """How long the updates of this peer may be, as the owner. With few known updates they bound it too: others may know
        more."""
        return OWNERS_SHARE * TIMES_MEDIAN * statistics.median(self._norms) if self._norms else None
