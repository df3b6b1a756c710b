"""One peer's network in memory: the ports that the real one has, in a world."""

import trio

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.traffic_ledger import NetworkTraffic, TrafficLedger
from legion_p2p.net.peer_score import Refusals
from legion_p2p.sim.discovery import SimDiscovery
from legion_p2p.sim.fabric import Fabric
from legion_p2p.sim.gossip import SimGossip
from legion_p2p.sim.messenger import SimMessenger
from legion_p2p.sim.reachability import SimReachability
from legion_p2p.sim.request import RequestUnderWay


class SimNetwork:
    """What `open_network` gives, in memory."""

    def __init__(self, world: Fabric, identity: Identity, address: str) -> None:
        self.identity = identity
        self.alive = True
        self.frozen = False
        self.held: list[tuple[str, bytes]] = []
        self.dial_reports: dict[str, str | None] = {}
        self.address = address
        self.connections: set[PeerId] = set()
        self.n_sent = self.n_received = self.n_gossip = 0
        self.handler_errors: list[Exception] = []
        self.refusals = Refusals()
        self.refusals.refused.add(lambda peer: world.disconnect(self.peer_id, peer))
        self.messenger = SimMessenger(world, self, self.refusals)
        self.reachability = SimReachability(world, self)
        self.discovery = SimDiscovery(world, self)
        self.gossip = SimGossip(world, self)
        self.died = trio.Event()
        self.asked: dict[RequestUnderWay, PeerId] = {}
        """Requests to this peer that are under way, and whose they are."""
        self.asking: set[RequestUnderWay] = set()
        """Requests of this peer that it waits for."""
        self._world = world

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def addresses(self) -> tuple[str, ...]:
        """Ending in /p2p/<id>."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.messenger.addresses())

    def network_traffic(self) -> NetworkTraffic:
        """Nothing: a simulation counts requests only."""
        return NetworkTraffic(TrafficLedger())

    async def join(self) -> None:
        """Nothing to do: all peers of a world can be found."""
        await trio.lowlevel.checkpoint()

    def keep_contacts(self) -> None:
        """Nothing to do either."""

    def close(self) -> None:
        """Leave. To the others it looks as if killed: leaving properly is the services' business."""
        if self.alive:
            self._world.kill(self.peer_id)

    def die(self) -> None:
        self.alive = False
        self.died.set()
        for exchange in self.asking:
            exchange.done.set()
        for exchange in self.asked:
            exchange.stop()
