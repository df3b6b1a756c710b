"""A search for the peers that provide something: candidates are asked as they become known."""

from collections.abc import Awaitable, Callable, Iterable

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId
from legion_p2p.net.dht import ALPHA, K

REST_S = 1.0  # for the other candidates, once one has confirmed: a live one mostly answers in half of that
MAX_CONFIRMING = 12  # candidates asked at once; each may first have to be dialed, and liars are slow to answer
MAX_CANDIDATES = 200  # asked in one `find`: a liar may name peers without end


class ProviderSearch:
    """The candidates of one `find`, each once; confirmed as they come."""

    def __init__(self, me: PeerId, confirm: Callable[[PeerId], Awaitable[Contact | None]], limit: int) -> None:
        """`confirm` asks a peer whether it provides it: None, if not."""
        self._confirm = confirm
        self._limit = limit
        self._seen = {me}
        self._send, self._receive = trio.open_memory_channel[PeerId](float("inf"))
        self._n_open = 0
        self._n_lookups = 0
        self._settled = Notify()
        self._enough_at = float("inf")
        self.is_thorough = False
        self.confirmed: dict[PeerId, Contact] = {}

    def add(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer not in self._seen and len(self._seen) < MAX_CANDIDATES:
                self._seen.add(peer)
                self._n_open += 1
                self._send.send_nowait(peer)

    def look_up(self, lookup: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Start a lookup that names candidates; the search is not settled before it is over."""
        self._n_lookups += 1
        nursery.start_soon(self._look_up, lookup)

    async def _look_up(self, lookup: Callable[[], Awaitable[None]]) -> None:
        try:
            await lookup()
        finally:
            self._n_lookups -= 1
            self._settled.notify()

    def n_nodes_to_ask(self) -> int:
        """The closest few are enough once they have named a peer; while none is named, it is worth asking them all."""
        return K if self.is_thorough or not (self.confirmed or self._n_open) else ALPHA

    async def settled(self) -> None:
        """Return when every peer that the lookups name has answered or will not; or REST_S after the first one said yes.

        A caller waits no longer than for one that never answers: then it would have nothing of those that did.
        """
        while self._n_open or self._n_lookups:
            with trio.move_on_at(self._enough_at):
                await self._settled.wait()
            if trio.current_time() >= self._enough_at:
                return

    async def confirm_candidates(self, nursery: trio.Nursery) -> None:
        slots = trio.CapacityLimiter(MAX_CONFIRMING)
        async with trio.open_nursery() as asking, self._receive:
            async for peer in self._receive:
                asking.start_soon(self._ask, peer, slots, nursery)

    async def _ask(self, peer: PeerId, slots: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        async with slots:
            contact = await self._confirm(peer)
        self._n_open -= 1
        if not self._n_open:
            self._settled.notify()
        if contact is not None and len(self.confirmed) < self._limit:
            if not self.confirmed:
                self._enough_at = trio.current_time() + REST_S
                self._settled.notify()
            self.confirmed[peer] = contact
            if len(self.confirmed) >= self._limit:
                nursery.cancel_scope.cancel()
