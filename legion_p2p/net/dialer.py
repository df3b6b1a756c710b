"""How to get a connection to a peer.

libp2p's `dial_peer` tries a single TCP address per peer, drops loopback addresses when there are others, retries with pauses,
and then refuses to dial for a minute. This one takes its place, for our own requests as for the DHT and gossip.
"""

import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import SystemRandom

import psutil
import trio
from libp2p.abc import INetConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UnreachableError
from legion_p2p.net.address_book import AddressBook, dialable
from legion_p2p.net.limits import (
    DIAL_STAGGER_S,
    DIAL_TIMEOUT_S,
    MAX_ADDRESSES_PER_PEER,
    MAX_DIALS,
    MAX_KNOWN_PEERS,
    REDIAL_PAUSE_S,
)
from legion_p2p.net.patches import replace_attributes
from legion_p2p.net.peer_score import REFUSED, Refusals
from legion_p2p.net.transport import reason_of

log = logging.getLogger("legion_p2p.net")
_random = SystemRandom()  # the module's own generator is the user's, whose seed may be the same at all peers


class Dialer:
    """Connections to peers by id. One dial per peer at a time; all its addresses race, each with a head start over the next."""

    def __init__(self, swarm: Swarm, nursery: trio.Nursery, book: AddressBook, refusals: Refusals) -> None:
        self._swarm = swarm
        self._nursery = nursery
        self._book = book
        self._refusals = refusals
        self._me = PeerId(str(swarm.get_peer_id()))
        self._dialing: dict[PeerId, _Dial] = {}
        self._failed: BoundedMap[PeerId, tuple[float, frozenset[str], str]] = BoundedMap(MAX_KNOWN_PEERS)
        self._slots = trio.CapacityLimiter(MAX_DIALS)
        replace_attributes(swarm, dial_peer=self._dial_for_libp2p)

    def connections(self, peer: PeerId) -> list[INetConn]:
        """The open ones."""
        return [conn for conn in self._swarm.get_connections(ID.from_base58(peer)) if not conn.is_closed]

    async def connect(self, peer: PeerId) -> None:
        """Return when there is a connection.

        Raises: UnreachableError.
        """
        if peer == self._me:
            raise UnreachableError(peer, "that is this peer itself")
        if self._refusals.is_refused(peer):
            raise UnreachableError(peer, REFUSED)
        if self.connections(peer):
            return
        addresses = self.addresses(peer)
        if not addresses:
            raise UnreachableError(peer, "no address of it is known, and it is not connected")
        self._check_pause(peer, addresses)
        dial = self._dialing.get(peer)
        if dial is None:
            dial = self._dialing[peer] = _Dial()
            # in a task of its own: whoever asked first may give up while others wait for the same connection
            self._nursery.start_soon(self._dial, peer, addresses, dial)
        await dial.done.wait()
        if dial.reason is not None:
            raise UnreachableError(peer, dial.reason)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where it may be found: what worked or was told to us first, then what libp2p heard of it."""
        try:
            heard = tuple(str(a) for a in self._swarm.peerstore.addrs(ID.from_base58(peer)))
        except Exception:  # PeerStoreError: it knows none
            heard = ()
        usable = dict.fromkeys(self._book.of(peer) + tuple(filter(None, map(dialable, heard))))
        return by_nearness(tuple(usable))[: 2 * MAX_ADDRESSES_PER_PEER]

    async def try_address(self, peer: PeerId, address: str) -> str | None:
        """Connect to `peer` at this very address; None if there is a connection then, else the reason why not."""
        reason: str | None = None
        async with self._slots:
            with trio.move_on_after(DIAL_TIMEOUT_S) as budget:
                try:
                    await self._swarm.dial_addr(Multiaddr(address), ID.from_base58(peer))
                    self._book.add(peer, (address,))
                except Exception as failed:
                    log.debug("dial %s at %s: %r", peer, address, failed)
                    reason = reason_of(failed)
        if budget.cancelled_caught:
            reason = f"no answer in {DIAL_TIMEOUT_S:.0f} s"
        return None if self.connections(peer) else reason or "the connection was closed at once"

    def _check_pause(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        failed = self._failed.get(peer)
        if failed is None:
            return
        when, tried, reason = failed
        if trio.current_time() - when < REDIAL_PAUSE_S and tried >= set(addresses):
            raise UnreachableError(peer, reason)
        del self._failed[peer]

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...], dial: "_Dial") -> None:
        reasons: dict[str, str] = {}
        dial.reason = "this peer is leaving"
        try:
            async with trio.open_nursery() as race:
                for address in addresses:
                    lost = trio.Event()
                    race.start_soon(self._race, peer, address, reasons, lost, race.cancel_scope)
                    with trio.move_on_after(DIAL_STAGGER_S):
                        await lost.wait()
            dial.reason = None
            if not self.connections(peer):
                dial.reason = "; ".join(f"{address}: {reason}" for address, reason in reasons.items()) or "no answer"
                self._failed[peer] = (trio.current_time(), frozenset(addresses), dial.reason)
        finally:
            del self._dialing[peer]
            dial.done.set()

    async def _race(
        self, peer: PeerId, address: str, reasons: dict[str, str], lost: trio.Event, others: trio.CancelScope
    ) -> None:
        reason = await self.try_address(peer, address)
        if reason is None:
            others.cancel()
        else:
            reasons[address] = reason
            self._book.forget(peer, address)
            lost.set()

    async def _dial_for_libp2p(self, peer_id: ID) -> list[INetConn]:
        peer = PeerId(str(peer_id))
        try:
            await self.connect(peer)
        except UnreachableError as failed:
            raise SwarmException(str(failed)) from failed
        return self.connections(peer)


class _Dial:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.reason: str | None = None


def own_hosts() -> tuple[str, ...]:
    """This machine's IP addresses, loopback excluded, IPv4 first; link-local IPv6 needs a zone, so it is left out."""
    found = [ip for ip in _own_ips() if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified)]
    return tuple(sorted(dict.fromkeys(map(str, found)), key=lambda host: (":" in host, not ip_address(host).is_global)))


def own_loopbacks() -> tuple[str, ...]:
    """127.0.0.1 and ::1, as far as this machine has them: one with IPv6 alone may lack the former."""
    versions = {ip.version for ip in _own_ips() if ip.is_loopback}
    return tuple(host for version, host in ((4, "127.0.0.1"), (6, "::1")) if version in versions)


def _own_ips() -> Iterator[IPv4Address | IPv6Address]:
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            try:
                yield ip_address(entry.address.partition("%")[0])
            except ValueError:  # a hardware address
                continue


def by_nearness(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Loopback addresses go first for a peer on this machine, and last for any other: there they lead to ourselves."""
    hosts = {address.split("/")[2] for address in addresses}
    same_machine = not hosts.isdisjoint(own_hosts()) or hosts <= {"127.0.0.1", "::1", "localhost"}
    return tuple(sorted(addresses, key=lambda a: is_loopback(a) != same_machine))


def is_loopback(address: str) -> bool:
    family, host = address.split("/")[1:3]
    return host == "localhost" if family.startswith("dns") else ip_address(host).is_loopback


def jittered(pause_s: float) -> float:
    """Between half and all of it: peers that lost the same node do not come back in one wave."""
    return pause_s * _random.uniform(0.5, 1.0)
