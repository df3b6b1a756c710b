"""Scheduling requests to providers: few at a time to each, and none to one that is busy before it says so."""

from collections import Counter
from collections.abc import Sequence
from random import Random

import trio

from legion_p2p.concurrency.semaphore import PeerSemaphore, SlotWait
from legion_p2p.core.identity import PeerId
from legion_p2p.core.slots import SlotLimits
from legion_p2p.core.wire import Busy
from legion_p2p.observe.events import Events

PER_PROVIDER = 2  # requests to one at a time: the next one travels while the answer to the first does
MAX_TURNED_AWAY = 60  # by one provider, one after the other: then it counts as one that fails


class ProviderScheduler:
    """Decides which provider one peer asks next."""

    def __init__(self, events: Events, rng: Random) -> None:
        self._events = events
        self._rng = rng
        self._semaphore = PeerSemaphore(SlotLimits(max_per_peer=PER_PROVIDER))
        self._n_turned_away: Counter[PeerId] = Counter()

    def turn(self, candidates: Sequence[PeerId]) -> SlotWait:
        """Wait until one of them may be asked, and ask that one within the block. Of several it is the one that has least to send
        us; of equal ones the first.
        """
        return self._semaphore.slot(candidates)

    def turned_away(self, peer: PeerId, busy: Busy) -> bool:
        """It has no room for us now; whether it should be asked again at all."""
        self._n_turned_away[peer] += 1
        # Not the moment that it names: all that were turned away would come back in the same one.
        self._semaphore.rest(peer, trio.current_time() + busy.retry_ms / 1000 * self._rng.uniform(0.5, 1.5))
        self._events.emit("donor.busy", peer=peer, retry_s=busy.retry_ms / 1000)
        return self._n_turned_away[peer] < MAX_TURNED_AWAY

    def served(self, peer: PeerId) -> None:
        """It answered, in whatever way."""
        del self._n_turned_away[peer]
