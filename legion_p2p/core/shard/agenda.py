"""When which shard is to be looked at: one heap for all shards of a peer.

Never happens: a shard is looked at twice for one deadline; the heap grows with the number of changes instead of the shards.
"""

import heapq

MIN_STALE = 64  # entries that count no longer and are tolerated before the heap is built again


class Agenda:
    """At most one deadline for each shard."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def set(self, shard: int, at: float | None) -> None:
        """Look at the shard at that time instead of any other; None: not before something happens to it."""
        if at is None:
            self._at.pop(shard, None)
        elif self._at.get(shard) != at:
            self._at[shard] = at
            heapq.heappush(self._heap, (at, shard))
            if len(self._heap) > 2 * len(self._at) + MIN_STALE:
                self._heap = [(at, shard) for shard, at in self._at.items()]
                heapq.heapify(self._heap)

    def due(self, now: float) -> list[int]:
        """The shards whose time has come; they have no deadline any more."""
        shards = []
        while self._heap and self._heap[0][0] <= now:
            at, shard = heapq.heappop(self._heap)
            if self._at.get(shard) == at:
                del self._at[shard]
                shards.append(shard)
        return shards

    def next_deadline(self) -> float | None:
        """The earliest one; None if there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
