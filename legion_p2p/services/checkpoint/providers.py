"""Whom to ask next, of those who give: few things of each at a time, and none of who is busy before it says."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Busy
from legion_p2p.observe.events import Events

PER_DONOR = 2  # requests to one at a time: the next one travels while the answer to the first does
MAX_TURNED_AWAY = 60  # by one donor, one after the other: then it counts as one that fails


class ProviderScheduler:
    """The turns of one newcomer at those whom it asks."""

    def __init__(self, events: Events, rng: Random) -> None:
        self._events = events
        self._rng = rng
        self._under_way: Counter[PeerId] = Counter()
        self._rests_until: dict[PeerId, float] = {}
        self._n_turned_away: Counter[PeerId] = Counter()
        self._changed = Notify()

    @asynccontextmanager
    async def turn(self, candidates: Sequence[PeerId]) -> AsyncIterator[PeerId]:
        """Wait until one of them may be asked, and ask that one within. Of several the one that has least to send us: of equal
        ones the first.
        """
        while not (free := [peer for peer in candidates if self._is_free(peer)]):
            rests = [self._rests_until.get(peer, math.inf) for peer in candidates if self._under_way[peer] < PER_DONOR]
            with trio.move_on_at(min(rests, default=math.inf)):
                await self._changed.wait()
        peer = min(free, key=self._under_way.__getitem__)
        self._under_way[peer] += 1
        try:
            yield peer
        finally:
            self._under_way[peer] -= 1
            self._changed.notify()

    def turned_away(self, peer: PeerId, busy: Busy) -> bool:
        """It has no room for us now; whether it should be asked again at all."""
        self._n_turned_away[peer] += 1
        # Not the moment that it names: all who were turned away would come back in the same one.
        self._rests_until[peer] = trio.current_time() + busy.retry_ms / 1000 * self._rng.uniform(0.5, 1.5)
        self._events.emit("donor.busy", peer=peer, retry_s=busy.retry_ms / 1000)
        return self._n_turned_away[peer] < MAX_TURNED_AWAY

    def served(self, peer: PeerId) -> None:
        """It answered, whatever."""
        del self._n_turned_away[peer]

    def _is_free(self, peer: PeerId) -> bool:
        return self._under_way[peer] < PER_DONOR and self._rests_until.get(peer, -math.inf) <= trio.current_time()
