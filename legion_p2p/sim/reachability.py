"""How simulated peers reach each other: the Reachability of services.ports."""

from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.reach import NO_CONNECTION, UNKNOWN_REACH, ConnectionKind, OwnReach, PeerConnection
from legion_p2p.sim.fabric import Fabric, Station


class SimReachability:
    """See services.ports.Reachability. What a peer found out of its own reach is set by `found`."""

    def __init__(self, world: Fabric, network: Station) -> None:
        self.changed: Observers[OwnReach] = Observers()
        self.regained: Observers[PeerId] = Observers()
        self._world = world
        self._network = network
        self._own = UNKNOWN_REACH

    def own(self) -> OwnReach:
        return self._own

    def found(self, own: OwnReach) -> None:
        """This is how others reach this peer now."""
        if own != self._own:
            self._own = own
            self.changed.tell(own)

    def heard_of_relay(self, peer: PeerId) -> None:
        """Relays are given by `World.hide`."""

    def connection(self, peer: PeerId) -> PeerConnection:
        if peer not in self._network.connections:
            return NO_CONNECTION
        relay = self._world.relay_between(self._network.peer_id, peer)
        kind = ConnectionKind.DIRECT if relay is None else ConnectionKind.RELAYED
        host = self._world.hosts.get(peer, "") if relay is None else ""
        return PeerConnection(kind, relay, self._network.messenger.rtt_s(peer), host=host)

    def is_cut_off(self) -> bool:
        return False  # a simulated machine keeps its addresses, and does not look at them
