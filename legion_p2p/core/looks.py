"""When to look for members that are unknown here, in the records that all of them keep.

    joined             -> three looks within seconds: others may have joined in the same second and know each other as little
    then               -> a look each period
    a look found nobody-> the next one after twice as many periods, up to MAX_PERIODS
    a look found some  -> each period again
    somebody is missed -> each period: a member that is dead here may be beyond a broken network, and this peer alone on its side

Gossip and exchanges tell of newcomers within seconds, so a look finds only those that both have missed. Each asks up to twenty
peers whether they still live.
"""

from collections.abc import Iterator

FIRST_LOOKS_S = (1.0, 3.0, 8.0)
MAX_PERIODS = 4  # two parts of a run that know nothing of each other, and miss nobody, meet within two minutes


class LookPlan:
    """Of one peer in one run."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._first: Iterator[float] = iter(FIRST_LOOKS_S)
        self._is_settling = True
        self._n_periods = 1
        self._n_waited = 0

    def next_s(self) -> float:
        """Seconds to wait, before `is_due` is asked."""
        for wait_s in self._first:
            return wait_s
        self._is_settling = False
        return self._period_s

    def is_due(self, *, misses: bool) -> bool:
        """Whether to look now. `misses`: a member is dead, as seen from here, or there is no other."""
        self._n_waited += 1
        if misses:
            self._n_periods = 1
        return self._is_settling or self._n_waited >= self._n_periods

    def looked(self, *, found: bool) -> None:
        """A look is over; `found`: somebody that was unknown."""
        self._n_waited = 0
        if found:
            self._n_periods = 1
        elif not self._is_settling:
            self._n_periods = min(2 * self._n_periods, MAX_PERIODS)
