"""The reach that a peer announces: what it found out, without the flicker. Each change of it moves shards.

    worse than announced   -> announced at once: others already fail to reach this peer
    better than announced  -> announced once it has stayed so for a pause: none at first, then FIRST_PAUSE_S after it got worse,
                              twice as long each time that it gets worse again, at most MAX_PAUSE_S
    as good as announced   -> announced at once: no shards move

After FORGET_S without a change for the worse the pause is none again.

Never happens: a peer whose reach wavers for an hour moves its shards more often than some ten times.
"""

import math

from legion_p2p.core.reach import Reach

FIRST_PAUSE_S = 10.0
MAX_PAUSE_S = 1200.0
FORGET_S = 3600.0


class SteadyReach:
    """The reach of one peer, as it announces it."""

    def __init__(self) -> None:
        self._announced = Reach.UNKNOWN
        self._better_since: float | None = None
        self._pause_s = 0.0
        self._got_worse_at = -math.inf

    def look(self, found: Reach, now: float) -> Reach:
        """What to announce now, where `found` is the newest that is known."""
        rank, before = found.rank, self._announced.rank
        if rank < before:
            if self._better_since is None:
                self._better_since = now
            if now - self._better_since < self._pause_now(now):
                return self._announced
        elif rank > before:
            self._pause_s = min(max(2 * self._pause_now(now), FIRST_PAUSE_S), MAX_PAUSE_S)
            self._got_worse_at = now
        self._better_since = None
        self._announced = found
        return found

    def _pause_now(self, now: float) -> float:
        return 0.0 if now - self._got_worse_at >= FORGET_S else self._pause_s
