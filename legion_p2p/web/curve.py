"""One curve of a page, in bounded memory."""

import math
from typing import Any

from legion_p2p.observe.history import History
from legion_p2p.web.page_blocks import Line

SLACK_S = 2.0  # events of two threads may come in another order than they happened
MAX_POINTS = 720  # a wide screen shows no more


class SteadyTime:
    """Times of events, as a line that never goes back by more than SLACK_S: where the clock was set back, it goes on from where
    it was.
    """

    def __init__(self) -> None:
        self._off_s = 0.0
        self._newest = -math.inf

    def of(self, at: float) -> float:
        """`at` as it belongs on the line."""
        steady = at + self._off_s
        if steady < self._newest - SLACK_S:
            self._off_s += self._newest - steady
            steady = self._newest
        self._newest = max(self._newest, steady)
        return steady


class Curve:
    """A history with the step at each of its points."""

    def __init__(self) -> None:
        self._y = History(MAX_POINTS)
        self._step = History(MAX_POINTS)

    def add(self, at: float, y: Any, step: Any = None) -> None:
        """A point, if `y` is a finite number."""
        value = number_of(y)
        if value is not None:
            self._y.add(at, value)
            self._step.add(at, number_of(step) or 0.0)

    def line(self, label: str, began: float, *, has_steps: bool = True) -> Line:
        """Over seconds since `began`."""
        return Line(
            label,
            tuple(round(at - began, 2) for at, _ in self._y.points),
            tuple(y for _, y in self._y.points),
            tuple(step for _, step in self._step.points) if has_steps else (),
        )


def number_of(value: Any) -> float | None:
    """A finite number; None for anything else, which a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None
