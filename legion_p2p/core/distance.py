"""How hard two regions pull at each other, by what becomes of the distance between them.

    first sync -> a quarter of the moving rate, then twice as much each time: two that trained apart come together gently
    the distance grew GROWING times in a row -> STEP times the rate, up to MAX_RATE
    it grew as often once more -> what both know of each other is forgotten, so that the next sync sends all of it again
    it does not grow -> back towards the moving rate

Can never happen: a rate above what is stable for differences as old as those of the last sync.
"""

FIRST = 0.25  # of the moving rate, at the first sync
STEP = 1.5
GROWING = 3  # in a row: noise of the training alone makes two often
TOLERANCE = 1.02  # distances that differ by less have not changed
MAX_RATE = 0.5  # at which both go half-way; beyond it they would pass each other
MARGIN = 0.9  # of the bound: at it two no longer come together


class DistanceGuard:
    """The moving rate towards one other region."""

    def __init__(self, moving_rate: float) -> None:
        self._moving_rate = moving_rate
        self._rate = FIRST * moving_rate
        self._last: float | None = None
        self._n_grown = 0

    def rate(self, bound: float) -> float:
        """The rate of the next sync. `bound`: below it two come together, see tensor.elastic."""
        return min(self._rate, MAX_RATE, MARGIN * bound)

    def synced(self, distance: float) -> bool:
        """They synced, at this distance. True: forget what both know of each other."""
        last, self._last = self._last, distance
        grew = last is not None and distance > TOLERANCE * last
        self._n_grown = self._n_grown + 1 if grew else 0
        if self._n_grown == 2 * GROWING:
            self._n_grown = 0
            return True
        if self._n_grown == GROWING:
            self._rate = min(self._rate * STEP, MAX_RATE)
        elif self._rate < self._moving_rate:
            self._rate = min(2 * self._rate, self._moving_rate)
        elif not grew:
            self._rate = max(self._rate / STEP, self._moving_rate)
        return False
