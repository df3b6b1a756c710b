"""Curves in bounded memory."""

MAX_HISTORY = 2048  # points of a curve; halved when full


class History:
    """A growing curve in bounded memory: when it is full, every second point goes."""

    def __init__(self, limit: int = MAX_HISTORY) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self.points: list[tuple[float, float]] = []

    def add(self, x: float, y: float) -> None:
        if self.points and x <= self.points[-1][0]:
            return
        self._seen += 1
        if self._seen % self._stride:
            return
        self.points.append((x, y))
        if len(self.points) >= self._limit:
            self.points = self.points[::2]
            self._stride *= 2
