"""How to get a connection to a peer.

libp2p's `dial_peer` tries a single TCP address per peer, drops loopback addresses when there are others, retries with pauses,
and then refuses to dial for a minute. This one takes its place, for our own requests as for the DHT and gossip.
"""

import logging
from collections.abc import Awaitable, Callable
from random import SystemRandom
from weakref import WeakSet

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from legion_p2p.core.addresses import Circuit, is_circuit, split_circuit
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.dial_order import Nearness, dial_order
from legion_p2p.core.dial_pauses import DialPauses
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UnreachableError
from legion_p2p.net.address_book import AddressBook, dialable
from legion_p2p.net.dial_reasons import reason_of
from legion_p2p.net.limits import (
    CIRCUIT_HEAD_START_S,
    CIRCUIT_TIMEOUT_S,
    DIAL_STAGGER_S,
    DIAL_TIMEOUT_S,
    MAX_ADDRESSES_PER_PEER,
    MAX_DIALS,
    MAX_KNOWN_PEERS,
    REDIAL_PAUSE_S,
)
from legion_p2p.net.networks import own_hosts, own_networks
from legion_p2p.net.patches import replace_attributes
from legion_p2p.net.peer_score import REFUSED, Refusals

log = logging.getLogger("legion_p2p.net")
_random = SystemRandom()  # the module's own generator is the user's, whose seed may be the same at all peers


class Dialer:
    """Connections to peers by id. One dial per peer at a time; all its addresses race, each with a head start over the next."""

    def __init__(self, swarm: Swarm, nursery: trio.Nursery, book: AddressBook, refusals: Refusals) -> None:
        self._swarm = swarm
        self._nursery = nursery
        self._book = book
        self._refusals = refusals
        self.me = PeerId(str(swarm.get_peer_id()))
        self._dialing: dict[tuple[PeerId, bool], _Dial] = {}
        self._failed: BoundedMap[PeerId, tuple[float, frozenset[str], str]] = BoundedMap(MAX_KNOWN_PEERS)
        self._refused_source: BoundedMap[str, bool] = BoundedMap(MAX_KNOWN_PEERS)
        self._pauses = DialPauses()
        self._slots = trio.CapacityLimiter(MAX_DIALS)
        self.circuits: Callable[[Circuit, PeerId], Awaitable[None]] | None = None
        """Connects through a relay; set by net/circuits.py."""
        self.source: Callable[[str], tuple[str, int] | None] = lambda address: None
        """Where to dial an address from, if not from any port."""
        self.punched: WeakSet[INetConn] = WeakSet()
        """Connections that came about because both sides dialed at once."""
        self.punching: set[PeerId] = set()
        """Peers that this side and they dial at this moment: a connection that comes about is such a one."""
        replace_attributes(swarm, dial_peer=self._dial_for_libp2p)

    def connections(self, peer: PeerId) -> list[INetConn]:
        """The open ones."""
        return [conn for conn in self._swarm.get_connections(ID.from_base58(peer)) if not conn.is_closed]

    def direct(self, peer: PeerId) -> list[INetConn]:
        """The open ones that do not lead through a relay."""
        return without_circuits(self.connections(peer))

    def table(self) -> dict[PeerId, list[INetConn]]:
        """The open connections of all peers; cheap enough to look at often."""
        found = {PeerId(str(peer)): [c for c in conns if not c.is_closed] for peer, conns in self._swarm.connections.items()}
        return {peer: conns for peer, conns in found.items() if conns}

    async def connect(self, peer: PeerId, *, directly: bool = False) -> None:
        """Return when there is a connection; with `directly`, one that does not lead through a relay.

        Raises: UnreachableError.
        """
        if peer == self.me:
            raise UnreachableError(peer, "that is this peer itself")
        if self._refusals.is_refused(peer):
            raise UnreachableError(peer, REFUSED)
        if self.direct(peer) if directly else self.connections(peer):
            return
        order = self._order(peer)
        if directly:
            order = tuple(entry for entry in order if entry[1] is not Nearness.CIRCUIT)
        addresses = tuple(address for address, _ in order)
        if not addresses:
            raise UnreachableError(peer, "no address of it is known, and it is not connected")
        self._check_pause(peer, addresses)
        dial = self._dialing.get((peer, directly))
        if dial is None:
            dial = self._dialing[peer, directly] = _Dial(directly)
            # in a task of its own: whoever asked first may give up while others wait for the same connection
            self._nursery.start_soon(self._dial, peer, order, dial)
        await dial.done.wait()
        if dial.reason is not None:
            raise UnreachableError(peer, dial.reason)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where it may be found, the most promising first."""
        return tuple(address for address, _ in self._order(peer))

    def _order(self, peer: PeerId) -> tuple[tuple[str, Nearness], ...]:
        """What worked or was told to us, then what libp2p heard of it, by how near it is."""
        try:
            heard = tuple(str(a) for a in self._swarm.peerstore.addrs(ID.from_base58(peer)))
        except Exception:  # PeerStoreError: it knows none
            heard = ()
        usable = dict.fromkeys(self._book.of(peer) + tuple(filter(None, map(dialable, heard))))
        return dial_order(tuple(usable), own_hosts(), own_networks())[: 2 * MAX_ADDRESSES_PER_PEER]

    async def try_address(self, peer: PeerId, address: str) -> str | None:
        """Connect to `peer` at this very address; None if there is a connection then, else the reason why not."""
        reason: str | None = None
        circuit = split_circuit(address)[0] if is_circuit(address) else None
        if circuit is not None:
            self._book.hear(circuit.relay, (circuit.where,))
            try:
                await self.connect(circuit.relay, directly=True)
            except UnreachableError as failed:
                return f"the relay {circuit.relay} cannot be reached: {failed.reason}"
        timeout_s = DIAL_TIMEOUT_S if circuit is None else CIRCUIT_TIMEOUT_S
        async with self._slots:
            with trio.move_on_after(timeout_s) as budget:
                try:
                    if circuit is None:
                        source = None if address in self._refused_source else self.source(address)
                        if source is not None:
                            # two sides that dial each other from their listening ports at once get one connection, on which
                            # both speak first: so only once
                            self._refused_source[address] = True
                        await self._swarm.dial_addr(Multiaddr(address), ID.from_base58(peer), source)
                        self._refused_source.pop(address, None)
                    elif self.circuits is not None:
                        await self.circuits(circuit, peer)
                    self._book.add(peer, (address,))
                except Exception as failed:
                    log.debug("dial %s at %s: %r", peer, address, failed)
                    reason = reason_of(failed)
        if budget.cancelled_caught:
            reason = f"no answer in {timeout_s:.0f} s"
        return None if self.connections(peer) else reason or "the connection was closed at once"

    def start_over(self) -> None:
        """The network is another one now: what failed may work, and what is being tried is begun again."""
        self._failed.clear()
        self._pauses.forget()
        for dial in self._dialing.values():
            dial.attempt.cancel()

    def _check_pause(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        failed = self._failed.get(peer)
        if failed is None:
            return
        when, tried, reason = failed
        if trio.current_time() - when < REDIAL_PAUSE_S and tried >= set(addresses):
            raise UnreachableError(peer, reason)
        del self._failed[peer]

    async def _dial(self, peer: PeerId, order: tuple[tuple[str, Nearness], ...], dial: "_Dial") -> None:
        reasons: dict[str, str] = {}
        dial.reason = "this peer is leaving"
        has_circuit = any(where is Nearness.CIRCUIT for _, where in order)
        try:
            while True:
                with dial.attempt:
                    await self._race_all(peer, order, reasons, has_circuit)
                if not dial.attempt.cancelled_caught:
                    break
                dial.attempt = trio.CancelScope()
            dial.reason = None
            if not (self.direct(peer) if dial.directly else self.connections(peer)):
                dial.reason = "; ".join(f"{address}: {reason}" for address, reason in reasons.items()) or "no answer"
                now = trio.current_time()
                self._failed.drop_while(lambda failed: now - failed[0] >= REDIAL_PAUSE_S)
                self._failed[peer] = (now, frozenset(address for address, _ in order), dial.reason)
        finally:
            del self._dialing[peer, dial.directly]
            dial.done.set()

    async def _race_all(
        self, peer: PeerId, order: tuple[tuple[str, Nearness], ...], reasons: dict[str, str], has_circuit: bool
    ) -> None:
        """Try all addresses, each with a head start over the next; returns when one worked, or all failed."""
        async with trio.open_nursery() as race:
            for i, (address, where) in enumerate(order):
                lost = trio.Event()
                host = address.split("/")[2]
                if where in (Nearness.PUBLIC, Nearness.BEHIND) and not self._pauses.allows(host, trio.current_time()):
                    reasons[address] = "nothing there has answered for a while"
                    continue
                race.start_soon(self._race, peer, address, reasons, lost, race.cancel_scope)
                behind = has_circuit and order[i + 1 : i + 2] and order[i + 1][1] is Nearness.BEHIND
                with trio.move_on_after(CIRCUIT_HEAD_START_S if behind else DIAL_STAGGER_S):
                    await lost.wait()

    async def _race(
        self, peer: PeerId, address: str, reasons: dict[str, str], lost: trio.Event, others: trio.CancelScope
    ) -> None:
        reason = await self.try_address(peer, address)
        host = address.split("/")[2]
        if reason is None:
            self._pauses.succeeded(host)
            others.cancel()
        else:
            reasons[address] = reason
            if self._swarm.connections:  # a peer that reaches nobody learns nothing about an address
                if not is_circuit(address):
                    self._pauses.failed(host, trio.current_time())
                self._book.forget(peer, address)
            lost.set()

    async def _dial_for_libp2p(self, peer_id: ID) -> list[INetConn]:
        peer = PeerId(str(peer_id))
        try:
            await self.connect(peer)
        except UnreachableError as failed:
            raise SwarmException(str(failed)) from failed
        return self.connections(peer)


def without_circuits(connections: list[INetConn]) -> list[INetConn]:
    """Those that do not lead through a relay."""
    return [conn for conn in connections if conn.get_connection_type() is not ConnectionType.RELAYED]


class _Dial:
    def __init__(self, directly: bool) -> None:
        self.directly = directly
        self.done = trio.Event()
        self.attempt = trio.CancelScope()
        self.reason: str | None = None


def jittered(pause_s: float) -> float:
    """Between half and all of it: peers that lost the same node do not come back in one wave."""
    return pause_s * _random.uniform(0.5, 1.0)
