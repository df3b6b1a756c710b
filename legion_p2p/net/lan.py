"""Meeting the peers of a LAN: they announce themselves by mDNS, and a few of them become contacts.

Interfaces come and go, so a session lasts until the machine's addresses change. Where this machine or its LAN lets no mDNS
through, nothing is said: it is one way to find others among several.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from legion_p2p.core.connectivity import AddressesChanged, Change
from legion_p2p.core.identity import PeerId, public_key_of
from legion_p2p.core.neighbours import Neighbours, addresses_in, announcement
from legion_p2p.errors import DecodeError, UnreachableError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.ends import multiaddr_of
from legion_p2p.net.listening import Listening
from legion_p2p.net.mdns import open_mdns
from legion_p2p.net.networks import is_elsewhere, is_loopback, own_networks

LOOK_EVERY_S = 1.0
RETRY_S = 60.0  # after mDNS could not be opened on this machine: another program may have had the port for itself

log = logging.getLogger("legion_p2p.net")


class Session(Protocol):
    """See net/mdns.py."""

    @property
    def heard(self) -> "trio.MemoryReceiveChannel[tuple[str, bool]]": ...

    async def said_by(self, name: str) -> bytes: ...


OpenSession = Callable[[Sequence[str], str, int, bytes], AbstractAsyncContextManager[Session]]


class Lan:
    """The neighbours of one peer."""

    def __init__(
        self,
        dialer: Dialer,
        book: AddressBook,
        listening: Listening,
        changes: NetworkChanges,
        open_session: OpenSession = open_mdns,
    ) -> None:
        self.met = trio.Event()
        """A neighbour is connected."""
        self._dialer = dialer
        self._book = book
        self._listening = listening
        self._open_session = open_session
        self._neighbours = Neighbours()
        self._moved = trio.Event()
        changes.changed.add(self._note)

    async def run_forever(self) -> None:
        while True:
            self._moved = trio.Event()
            hosts = self._listening.look()
            said = announcement(self._dialer.me, self._outside())
            if not hosts or not said:  # this peer listens on this machine alone, or nowhere
                await self._moved.wait()
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._session, hosts, said)
                await self._moved.wait()
                nursery.cancel_scope.cancel()

    def _outside(self) -> tuple[str, ...]:
        return tuple(map(multiaddr_of, self._listening.near()))

    async def _session(self, hosts: Sequence[str], said: bytes) -> None:
        port = int(self._outside()[0].split("/")[4])
        while True:
            try:
                async with (
                    self._open_session(hosts, self._dialer.me, port, said) as session,
                    session.heard,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._dial_forever, nursery)
                    async for name, is_there in session.heard:
                        await self._hear(session, name, is_there)
            except OSError as failed:
                log.debug("no mDNS on %s: %s", ", ".join(hosts), failed)
            await trio.sleep(RETRY_S)

    async def _hear(self, session: Session, name: str, is_there: bool) -> None:
        """A name is whatever a neighbour chose: it means nothing unless it is a peer id."""
        try:
            public_key_of(name)
        except DecodeError:
            return
        peer = PeerId(name)
        if peer == self._dialer.me:
            return
        if not is_there:
            self._neighbours.gone(peer)
            return
        networks = own_networks()
        addresses = addresses_in(await session.said_by(name), peer, lambda host: not is_elsewhere(host, networks))
        outside = tuple(address for address in addresses if not is_loopback(address))
        if outside:
            self._book.hear(peer, outside)
            self._neighbours.hear(peer, trio.current_time())

    async def _dial_forever(self, nursery: trio.Nursery) -> None:
        dialing: set[PeerId] = set()

        async def dial(peer: PeerId) -> None:
            try:
                await self._dialer.connect(peer)
            except UnreachableError as failed:
                log.debug("neighbour: %s", failed)
                self._neighbours.failed(peer, trio.current_time())
            finally:
                dialing.discard(peer)

        while True:
            connected = {peer for peer in self._neighbours.peers() if self._dialer.connections(peer)}
            if connected:
                self.met.set()
            for peer in self._neighbours.to_dial(connected | dialing, trio.current_time()):
                dialing.add(peer)
                nursery.start_soon(dial, peer)
            await trio.sleep(LOOK_EVERY_S)

    def _note(self, change: Change) -> None:
        if isinstance(change, AddressesChanged):
            self._moved.set()
