"""Requests and replies in a simulated world: the Messenger of services.ports.

The requests of this peer: client.py; those of others: server.py. This module puts the two together, as net/messenger.py does.
"""

import math

from legion_p2p.core.contact import Bandwidth, Handler, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.spliced import Bytes
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.peer_score import Refusals
from legion_p2p.sim.client import SimClient
from legion_p2p.sim.fabric import Fabric, Station
from legion_p2p.sim.server import SimServer


class SimMessenger:
    """See services.ports.Messenger."""

    def __init__(self, world: Fabric, network: Station, refusals: Refusals) -> None:
        self.peer_id = network.peer_id
        self.refusals = refusals
        self.book = AddressBook()
        self.server = SimServer(network)
        self._world = world
        self._network = network
        self._client = SimClient(world, network, self.book, refusals)

    def serve(self, handler: Handler, longest: float = math.inf) -> None:
        self.server.serve("", handler, longest)

    def serve_internally(self, service: str, handler: Handler) -> None:
        """Answer requests of another part of the network layer."""
        self.server.serve(service, handler)

    async def request(self, peer: PeerId, body: Bytes, priority: Priority = Priority.CONTROL) -> bytes:
        return await self._client.call(peer, "", bytes(body), priority)

    async def call(self, peer: PeerId, service: str, body: bytes) -> bytes:
        """`request`, to another part of the network layer."""
        return await self._client.call(peer, service, body)

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self.book.add(peer, addresses)

    def addresses(self) -> tuple[str, ...]:
        return (self._network.address,)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self._network.connections) if self._network.alive else frozenset()

    def rtt_s(self, peer: PeerId) -> float | None:
        return self._client.rtt_s(peer)

    def bandwidth(self) -> Bandwidth:
        up_bps, down_bps = self._world.rates.limits_bps(self.peer_id)
        return self._world.bandwidths.get(self.peer_id, Bandwidth(upload_limit_bps=up_bps, download_limit_bps=down_bps))

    def traffic(self) -> Traffic:
        return Traffic(sent_bytes=self._network.n_sent, received_bytes=self._network.n_received)

    def report(self, peer: PeerId, misbehaviour: str) -> None:
        self.refusals.report(peer, misbehaviour)
