"""In which order a peer sends updates, where many wait: those first that others wait for in turn.

    waiting   -> under way  fewer than MIN_UNDER_WAY are under way, or their bytes are fewer than WINDOW_BYTES
    under way -> done       the receiver has answered, or failed to
    under way -> overdue    it takes SLOW_FACTOR times as long as it should: its receiver is slow, and holds nobody else up

All at once would bring each to its receiver at the end of the time that all take together: in a tree that time adds up. One at a
time would leave the line idle between two.

Never happens: a receiver that does not answer keeps others from getting updates.
"""

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

MIN_UNDER_WAY = 2  # one is sent while the receiver of the other answers
WINDOW_BYTES = 1 << 18  # 100 ms at 20 Mbit/s: small updates all go at once
SLOW_FACTOR = 3.0
SLOW_S = 0.5  # more than a round trip between any two places


class SendQueue(Generic[T]):
    """What one peer sends, and has yet to send. Each item is one object, of any type."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, int, T]] = []
        self._under_way: dict[int, tuple[float, int]] = {}
        self._n_put = 0

    def put(self, item: T, rank: int, n_bytes: int) -> None:
        """It waits for its turn: behind all of its rank or a lower one."""
        heapq.heappush(self._waiting, (rank, self._n_put, n_bytes, item))
        self._n_put += 1

    def poll(self, now: float, bps: float) -> tuple[int, T] | None:
        """The next one to send, with the number to tell `done`; None: nothing, or not yet. `bps`: what is sent a second."""
        if not self._waiting or not self._has_room(now):
            return None
        _, number, n_bytes, item = heapq.heappop(self._waiting)
        ahead = n_bytes + sum(n for _, n in self._under_way.values())
        self._under_way[number] = now + SLOW_S + SLOW_FACTOR * 8 * ahead / bps, n_bytes
        return number, item

    def done(self, number: int) -> None:
        """It has arrived, or never will."""
        self._under_way.pop(number, None)

    def next_deadline(self) -> float | None:
        """When there is room again because something is overdue; None: nothing waits, or nothing is under way."""
        return min((until for until, _ in self._under_way.values()), default=None) if self._waiting else None

    def _has_room(self, now: float) -> bool:
        for number in [number for number, (until, _) in self._under_way.items() if until <= now]:
            del self._under_way[number]
        sizes = [n for _, n in self._under_way.values()]
        return len(sizes) < MIN_UNDER_WAY or sum(sizes) < WINDOW_BYTES
