"""Requests and replies between peers, over libp2p streams: the Messenger of services.ports.

The requests of this peer: client.py; those of others: server.py. This module puts the two together.
"""

import logging
import math
from collections.abc import Callable, Sequence

import trio
from libp2p.abc import INetConn
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID

from legion_p2p.core.contact import Bandwidth, Handler, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.spliced import Bytes
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.bulk_lanes import SERVICE, BulkLanes, LaneParts
from legion_p2p.net.client import Client
from legion_p2p.net.counters import Counters
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.libp2p_host import swarm_of
from legion_p2p.net.netem import Shaper
from legion_p2p.net.peer_score import Refusals
from legion_p2p.net.server import Server
from legion_p2p.net.stream_meters import StreamMeters
from legion_p2p.net.streams import PROTOCOLS, SharedParts

log = logging.getLogger("legion_p2p.net")


class Libp2pMessenger:
    """See services.ports.Messenger."""

    def __init__(
        self, host: BasicHost, nursery: trio.Nursery, dialer: Dialer, book: AddressBook, refusals: Refusals,
        addresses: Callable[[], tuple[str, ...]], shaper: Shaper | None, lanes: LaneParts | None,
    ) -> None:  # fmt: skip
        """`lanes`: None: bulk goes over libp2p only."""
        self.peer_id = PeerId(str(host.get_id()))
        self.refusals = refusals
        self._host = host
        self._nursery = nursery
        self._book = book
        self._addresses = addresses
        self.meters = StreamMeters(swarm_of(host))
        parts = SharedParts(Counters(None if shaper is None else shaper.limits_bps), refusals, shaper)
        self._counters = parts.counters
        self.other_version = parts.other_version
        self._server = Server(host, nursery, parts)
        self._lanes = None if lanes is None else BulkLanes(lanes, nursery, dialer, refusals, self.call, self._server.serve_lane)
        self._client = Client(host, nursery, dialer, parts, self._lanes)
        if self._lanes is not None:
            self.serve_internally(SERVICE, self._lanes.answer)
        refusals.refused.add(lambda peer: nursery.start_soon(self._disconnect, peer))

    def serve(self, handler: Handler, longest: float = math.inf) -> None:
        self._server.serve("", handler, longest)

    def serve_internally(self, service: str, handler: Handler) -> None:
        """Answer requests of another part of the network layer."""
        self._server.serve(service, self.meters.answering(service, handler))

    async def request(self, peer: PeerId, body: Bytes, priority: Priority = Priority.CONTROL) -> bytes:
        return await self._client.call(peer, "", body, priority)

    async def call(self, peer: PeerId, service: str, body: bytes) -> bytes:
        """`request`, to another part of the network layer."""
        reply = await self._client.call(peer, service, body)
        self.meters.asked(peer, service, len(body), len(reply))
        return reply

    async def accept_tls(self, stream: trio.SocketStream) -> None:
        """Take an inbound connection that begins with TLS: a bulk lane, or nothing."""
        if self._lanes is None:
            await trio.aclose_forcefully(stream)
        else:
            await self._lanes.accept(stream)

    def drop_all_lanes(self) -> None:
        """Close all connections for bulk; the next requests make them again."""
        if self._lanes is not None:
            self._lanes.drop()

    def drop_lanes(self, peer: PeerId) -> None:
        """A connection to `peer` was found dead, and what runs beside it probably is, too."""
        if self._lanes is not None:
            self._lanes.close_all(peer)

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._book.add(peer, addresses)

    def addresses(self) -> tuple[str, ...]:
        return self._addresses()

    def connected(self) -> frozenset[PeerId]:
        connections = self._host.get_network().connections
        return frozenset(PeerId(str(peer)) for peer, conns in connections.items() if any(not conn.is_closed for conn in conns))

    def prefer_direct(self, peer: PeerId, circuits: Sequence[INetConn]) -> bool:
        """Use the direct connection to it from now on; whether requests of either side still run over its circuits."""
        self._client.prefer_direct(peer)
        lanes = PROTOCOLS.values()
        return any(stream.get_protocol() in lanes for circuit in circuits for stream in circuit.get_streams())

    def rtt_s(self, peer: PeerId) -> float | None:
        return self._client.rtt_s(peer)

    def rate_bps(self, peer: PeerId) -> float | None:
        """What transfers to or from it have lately reached, in the faster direction; None: not measured."""
        return self._counters.rate_bps(peer)

    def traffic(self) -> Traffic:
        return self._counters.traffic()

    def is_busy(self) -> bool:
        """A transfer of some size is under way, in either direction."""
        return self._counters.is_busy

    def bandwidth(self) -> Bandwidth:
        return self._counters.bandwidth()

    def report(self, peer: PeerId, misbehaviour: str) -> None:
        self.refusals.report(peer, misbehaviour)

    async def _disconnect(self, peer: PeerId) -> None:
        try:
            await self._host.get_network().close_peer(ID.from_base58(peer))
        except Exception as failed:
            log.debug("closing %s: %r", peer, failed)
