"""Whose transfer is next, where several large ones share one connection."""

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from legion_p2p.concurrency.notify import Notify


class Turns:
    """The smallest first, as many at a time as have few bytes together: when time runs out, most have arrived whole."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: that may be under way at once; a larger one is alone."""
        self._max_bytes = max_bytes
        self._under_way = 0
        self._waiting: list[tuple[int, int]] = []
        self._order = itertools.count()
        self._changed_notify = Notify()

    @asynccontextmanager
    async def take(self, n_bytes: int) -> AsyncIterator[None]:
        """Wait until it is the turn of a transfer of so many bytes; the next ones come when the block ends."""
        turn = (n_bytes, next(self._order))
        heapq.heappush(self._waiting, turn)
        try:
            await trio.lowlevel.checkpoint()  # those that begin in the same moment are compared first
            while turn != self._waiting[0] or (self._under_way and self._under_way + n_bytes > self._max_bytes):
                await self._changed_notify.wait()
        finally:
            self._waiting.remove(turn)
            heapq.heapify(self._waiting)
            self._changed_notify.notify()
        self._under_way += n_bytes
        try:
            yield
        finally:
            self._under_way -= n_bytes
            self._changed_notify.notify()
