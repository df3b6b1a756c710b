"""What a node knows of others, handed out to be kept over a restart, and taken back.

A node that comes back answers at once with the peers and the DHT records that it had, while those peers still find out that it
is there again. Both are checked as hearsay is: a record counts for the rest of its life only, and an address as one that was
heard of.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio
from libp2p.abc import IPeerStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.known_peers import MAX_REMEMBERED_PEERS, KnownPeer, KnownPeers, Provided, bounded
from legion_p2p.errors import StoreError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.dht import Dht, K

LOOK_EVERY_S = 10.0  # between two looks at the connected peers: one that stays for less is not worth keeping
SAVE_EVERY_S = 300.0  # what a power failure costs; a megabyte each time
NAMED_FOR_S = 600  # how long a peer of the last time is named to others without having come back

log = logging.getLogger("legion_p2p.net")


class Shelf(Protocol):
    """Where what is known is kept."""

    def load(self) -> KnownPeers:
        """Raises: StoreError."""
        ...

    def save(self, known: KnownPeers) -> None:
        """Raises: StoreError."""
        ...


class Recall:
    """What one node knows of others. Wall time comes in as an argument: it goes on while the node is down."""

    def __init__(self, dht: Dht, book: AddressBook, peerstore: IPeerStore, connected: Callable[[], frozenset[PeerId]]) -> None:
        self._dht = dht
        self._book = book
        self._peerstore = peerstore
        self._connected = connected
        self._connected_at: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED_PEERS)

    def __len__(self) -> int:
        """Peers that are known."""
        return len(self._connected_at)

    def look(self, now: float) -> None:
        """Note which peers are connected now."""
        for peer in self._connected():
            self._connected_at[peer] = now

    def known(self, now: float) -> KnownPeers:
        """What is to be kept."""
        self.look(now)
        records = self._dht.providers.by_peer()
        return bounded(
            KnownPeer(peer, self._addresses(peer), at, tuple(Provided(key, made) for key, made in records.get(peer, ())))
            for peer, at in self._connected_at.items()
        )

    async def take(self, known: KnownPeers, now: float, *, introduce: bool) -> None:
        """Know again what was known the last time. `introduce`: also name them to others, and ask them, before they come back."""
        for peer in reversed(known.peers):  # the newest last, which is the order of a bounded map
            self._connected_at[PeerId(peer.id)] = min(peer.connected_at, now)
            self._book.hear(PeerId(peer.id), peer.addresses)
        if introduce:
            await self._introduce(known, now)

    async def _introduce(self, known: KnownPeers, now: float) -> None:
        oldest = now - self._dht.providers.lifetime_s
        for n, peer in enumerate(known.peers):
            who, addresses = ID.from_base58(peer.id), [Multiaddr(address) for address in peer.addresses]
            self._peerstore.add_addrs(who, addresses, NAMED_FOR_S)
            if n < K:  # one bucket: for more, the table would ask the oldest of them whether it is there
                await self._dht.remember(who)
            for record in peer.provides:
                if record.at >= oldest:
                    self._dht.providers.restore(record.key, PeerInfo(who, addresses), record.at)

    @asynccontextmanager
    async def kept(self, shelf: Shelf, warn: Callable[[str], None], *, introduce: bool) -> AsyncIterator[None]:
        """`take` what is on `shelf`, and keep it up to date as long as the block lasts, and a last time at its end.

        What cannot be read or written is told in a line: a node is of use without.
        """
        try:
            known = await trio.to_thread.run_sync(shelf.load)
        except StoreError as damaged:
            warn(f"beginning without the peers that were known: {damaged}")
            known = KnownPeers()
        await self.take(known, time.time(), introduce=introduce)
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._keep, shelf, warn)
            yield
            nursery.cancel_scope.cancel()

    async def _keep(self, shelf: Shelf, warn: Callable[[str], None]) -> None:
        told = ""

        def save(known: KnownPeers) -> None:
            nonlocal told
            try:
                shelf.save(known)
                told = ""
            except StoreError as failed:
                if str(failed) != told:
                    told = str(failed)
                    warn(f"the known peers are not kept: {told}")

        try:
            while True:
                save_at = trio.current_time() + SAVE_EVERY_S
                while trio.current_time() < save_at:
                    await trio.sleep(LOOK_EVERY_S)
                    self.look(time.time())
                await trio.to_thread.run_sync(save, self.known(time.time()))
        finally:
            save(self.known(time.time()))  # while the connections are still there

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Those that worked or were announced first, then what it told libp2p."""
        try:
            told = [str(address) for address in self._peerstore.addrs(ID.from_base58(peer))]
        except Exception:  # PeerStoreError: it told nothing
            told = []
        return tuple(dict.fromkeys((*self._book.of(peer), *(address.removesuffix(f"/p2p/{peer}") for address in told))))
