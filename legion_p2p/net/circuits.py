"""Circuits of this peer: reservations with relays, connections through them in both directions.

A peer that nobody has been seen to dial keeps reservations with two relays, and announces their circuits. Relays are the peers
that it is connected to, that speak the protocol, and that are elsewhere: on one LAN nobody needs a relay.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from legion_p2p.core.addresses import Circuit, split_address
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contact import Contact
from legion_p2p.core.dial_order import Network
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.reservations import MAX_CANDIDATES, Reservations
from legion_p2p.errors import DecodeError, UnreachableError, UsageError
from legion_p2p.net.address_book import AddressBook, dialable
from legion_p2p.net.circuit_stream import CircuitStream, read_message, reset, write_message
from legion_p2p.net.dialer import Dialer, without_circuits
from legion_p2p.net.ends import remote_end
from legion_p2p.net.limits import CIRCUIT_READ_S, MAX_ADDRESSES_PER_PEER, MAX_CIRCUITS_IN
from legion_p2p.net.networks import is_elsewhere, is_loopback, own_networks
from legion_p2p.net.peer_score import Refusals
from legion_p2p.net.relay import HOP, STOP

TICK_S = 0.5
FIRST_LOOK_S = 5.0  # until the second look for further relays; doubled each time, because a look in the DHT costs 0.1 CPU seconds
MAX_LOOK_S = 300.0
FIND_S = 10.0  # for a look in the DHT
RELAYS_DIALED = 3  # in one look
REDIAL_RELAY_S = 120.0  # until one is dialed again only to reserve with it
RELAY_KEY = "relay"  # under which relays are found in the DHT
MIN_RESERVED_S, MAX_RESERVED_S = 30.0, 7200.0  # what a relay may say of its reservation's end; its clock may be wrong
MAX_CIRCUITS_TOLD = 3  # addresses of one relay that are announced: IPv4, IPv6 and a name

REFUSALS: Final = {
    Status.RESERVATION_REFUSED: "the relay takes no more peers",
    Status.RESOURCE_LIMIT_EXCEEDED: "the relay carries no more circuits",
    Status.PERMISSION_DENIED: "the relay does not allow it",
    Status.CONNECTION_FAILED: "the relay cannot reach that peer",
    Status.NO_RESERVATION: "that peer has no reservation with the relay",
}

log = logging.getLogger("legion_p2p.net")


class Circuits:
    """Reserves, dials and accepts."""

    def __init__(self, host: BasicHost, swarm: Swarm, dialer: Dialer, book: AddressBook, refusals: Refusals) -> None:
        self._host = host
        self._swarm = swarm
        self._dialer = dialer
        self._book = book
        self._refusals = refusals
        self._reservations = Reservations()
        self._n_accepted = 0
        self._told: tuple[PeerId, ...] = ()
        self.wanted = True
        """Whether this peer takes relays: nobody has been seen to dial it."""
        self.needed = False
        """Whether it has to look for them: others tried to dial it, and could not."""
        self.changed: Observers[None] = Observers()
        """Told when the relays are others."""
        self.find: Callable[[], Awaitable[tuple[Contact, ...]]] | None = None
        """Looks for further relays in the DHT."""
        self._heard: BoundedMap[PeerId, float] = BoundedMap(MAX_CANDIDATES)  # relays, and when to dial each at the earliest
        self._look_at = float("-inf")
        self._look_pause_s = FIRST_LOOK_S
        dialer.circuits = self.dial
        host.set_stream_handler(STOP, self._accept)

    def addresses(self) -> tuple[str, ...]:
        """The circuits that lead here, without this peer's id."""
        found: dict[str, None] = {}
        for relay, where in self._reservations.held(trio.current_time()).items():
            found.update(dict.fromkeys(str(Circuit(address, relay)) for address in where))
        return tuple(found)

    def relays(self) -> tuple[PeerId, ...]:
        """Those that hold a reservation for this peer."""
        return tuple(self._reservations.held(trio.current_time()))

    def hear(self, relay: PeerId) -> None:
        """This peer is a relay, by its own account or by the DHT's."""
        if relay not in self._heard:
            self._heard[relay] = float("-inf")

    async def keep(self) -> None:
        """Keep reservations as long as they are needed, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if self.wanted:
                    networks = own_networks()
                    table = self._dialer.table()
                    if not self._reservations.lacks():  # nobody else is of interest
                        held = self.relays()
                        table = {peer: connections for peer, connections in table.items() if peer in held}
                    usable = frozenset(peer for peer, conns in table.items() if self._relays(peer, conns, networks))
                    for peer in usable:
                        self._reservations.hear(peer)
                    relay = self._reservations.poll(trio.current_time(), usable)
                    if relay is not None:
                        nursery.start_soon(self._reserve, relay)
                        continue
                    if not self._reservations.lacks():
                        self._look_pause_s = FIRST_LOOK_S
                    elif self.needed and trio.current_time() >= self._look_at:
                        self._look_at = trio.current_time() + self._look_pause_s
                        self._look_pause_s = min(2 * self._look_pause_s, MAX_LOOK_S)
                        nursery.start_soon(self._look_further, usable)
                else:
                    self._reservations.release()
                if self.relays() != self._told:
                    self._told = self.relays()
                    self.changed.tell(None)
                await trio.sleep(TICK_S)

    async def dial(self, circuit: Circuit, peer: PeerId) -> None:
        """Connect to `peer` through a relay that this side is connected to.

        Raises: OpenConnectionError, with a reason for people; what libp2p raises where the two ends do not get on.
        """
        stream = await self._host.new_stream(ID.from_base58(circuit.relay), [HOP])
        try:
            ask = HopMessage(type=HopMessage.CONNECT)
            ask.peer.id = ID.from_base58(peer).to_bytes()
            await write_message(stream, ask)
            await _ok(stream)
            raw = _raw(stream, f"{circuit}/p2p/{peer}", initiator=True)
            await self._swarm.upgrade_outbound_raw_conn(raw, ID.from_base58(peer))
        except BaseException:  # a caller that gives up as well: the relay would carry the rest of it for nobody
            await reset(stream)
            raise

    async def _accept(self, stream: INetStream) -> None:
        """A relay brings somebody who wants to connect."""
        relay = PeerId(str(stream.muxed_conn.peer_id))
        self._n_accepted += 1
        try:
            message = await read_message(stream, StopMessage)
            answer = StopMessage(type=StopMessage.STATUS, status=Status.OK)
            if message.type != StopMessage.CONNECT:
                answer.status = Status.UNEXPECTED_MESSAGE
            elif relay not in self._reservations.held(trio.current_time()):
                answer.status = Status.PERMISSION_DENIED  # nobody was asked to bring anybody
            elif self._n_accepted > MAX_CIRCUITS_IN:
                answer.status = Status.RESOURCE_LIMIT_EXCEEDED
            await write_message(stream, answer)
            if answer.status != Status.OK:
                return
            source = ID(message.peer.id)
            raw = _raw(stream, f"{self._place_of(relay)}/p2p-circuit/p2p/{source}", initiator=False)
            muxed: IMuxedConn = await self._swarm.upgrade_inbound_raw_conn(raw, Multiaddr(f"/p2p/{source}"))
            if muxed.peer_id != source:
                await muxed.close()
                self._refusals.report(relay, f"brought {muxed.peer_id}, and said that it was {source}")
                return
            await cast(Yamux, muxed).event_closed.wait()
        except DecodeError as bad:
            self._refusals.report(relay, str(bad))
        except Exception as failed:
            log.debug("a circuit through %s: %r", relay, failed)
        finally:
            self._n_accepted -= 1
            await reset(stream)

    async def _look_further(self, known: frozenset[PeerId]) -> None:
        """Connect to a relay that was announced; where none was, ask the DHT for some."""
        now = trio.current_time()
        others = [peer for peer, due_at in self._heard.items() if peer not in known and due_at <= now]
        if not others and self.find is not None:
            with trio.move_on_after(FIND_S):
                for contact in await self.find():
                    self._book.hear(contact.peer_id, contact.addresses)
                    self.hear(contact.peer_id)
            others = [peer for peer in self._heard if peer not in known]
        for relay in others[:RELAYS_DIALED]:
            self._heard[relay] = trio.current_time() + REDIAL_RELAY_S
            try:
                await self._dialer.connect(relay, directly=True)
            except UnreachableError as failed:
                log.debug("a relay: %s", failed)

    async def _reserve(self, relay: PeerId) -> None:
        try:
            with trio.fail_after(2 * CIRCUIT_READ_S):
                stream = await self._host.new_stream(ID.from_base58(relay), [HOP])
                try:
                    await write_message(stream, HopMessage(type=HopMessage.RESERVE))
                    answer = await _ok(stream)
                finally:
                    await reset(stream)
        except Exception as failed:  # libp2p raises many kinds
            log.debug("no reservation with %s: %r", relay, failed)
            self._reservations.failed(relay, trio.current_time())
            return
        left_s = min(max(answer.reservation.expire - time.time(), MIN_RESERVED_S), MAX_RESERVED_S)
        where = self._dialable(relay, answer)
        self._reservations.granted(relay, left_s, where, trio.current_time())
        log.debug("reachable through %s at %s for %.0f s", relay, ", ".join(where), left_s)

    def _dialable(self, relay: PeerId, answer: HopMessage) -> tuple[str, ...]:
        """Where others dial the relay: where this side did, and what it says of itself; outside of our networks first."""
        said: list[str] = []
        for raw in answer.reservation.addrs[:MAX_ADDRESSES_PER_PEER]:
            try:
                said.append(split_address(str(Multiaddr(raw)))[0])
            except (ValueError, UsageError) as bad:
                log.debug("an address of the relay %s: %s", relay, bad)
        known = self._book.of(relay)
        networks = own_networks()
        candidates = [a for a in dict.fromkeys((*known, *said)) if "/p2p-circuit" not in a and dialable(a) and not is_loopback(a)]
        return tuple(sorted(candidates, key=lambda a: not is_elsewhere(a.split("/")[2], networks)))[:MAX_CIRCUITS_TOLD]

    def _relays(self, peer: PeerId, connections: list[INetConn], networks: tuple[Network, ...]) -> bool:
        """Whether it relays, and is somewhere else."""
        ends = [remote_end(conn.muxed_conn) for conn in without_circuits(connections)]
        if not any(end is not None and is_elsewhere(end[0], networks) for end in ends):
            return False
        if peer in self._heard:
            return True
        try:
            protocols = self._host.get_peerstore().get_protocols(ID.from_base58(peer))
        except Exception:  # PeerStoreError: identify has not run yet
            return False
        return HOP in protocols

    def _place_of(self, relay: PeerId) -> str:
        where = self._book.of(relay)
        return f"{where[0]}/p2p/{relay}" if where and "/p2p-circuit" not in where[0] else f"/p2p/{relay}"


def _raw(stream: INetStream, address: str, initiator: bool) -> RawConnection:
    circuit = cast(ReadWriteCloser, CircuitStream(stream))
    return RawConnection(circuit, initiator, ConnectionType.RELAYED, [Multiaddr(address)])


async def _ok(stream: INetStream) -> HopMessage:
    """What a relay answered, if it agreed. Raises: OpenConnectionError."""
    answer = await read_message(stream, HopMessage)
    if answer.type != HopMessage.STATUS:
        raise OpenConnectionError("the relay did not answer with a status")
    if answer.status != Status.OK:
        raise OpenConnectionError(REFUSALS.get(answer.status, f"the relay refused with status {answer.status}"))
    return answer
