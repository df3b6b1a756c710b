"""How peers reach each other, as far as this host knows: the Reachability of services.ports."""

from collections.abc import Callable

from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.reach import NO_CONNECTION, UNKNOWN_REACH, ConnectionKind, OwnReach, PeerConnection
from legion_p2p.net.circuits import relay_of
from legion_p2p.net.dialer import Dialer


class Libp2pReachability:
    """See services.ports.Reachability."""

    def __init__(self, dialer: Dialer, rtt_s: Callable[[PeerId], float | None]) -> None:
        self.changed: Observers[OwnReach] = Observers()
        self._dialer = dialer
        self._rtt_s = rtt_s
        self._own = UNKNOWN_REACH

    def own(self) -> OwnReach:
        return self._own

    def found(self, own: OwnReach) -> None:
        """This is how others reach this peer now."""
        if own != self._own:
            self._own = own
            self.changed.tell(own)

    def connection(self, peer: PeerId) -> PeerConnection:
        connections = self._dialer.connections(peer)
        if not connections:
            return NO_CONNECTION
        if self._dialer.direct(peer):
            return PeerConnection(ConnectionKind.DIRECT, rtt_s=self._rtt_s(peer))
        return PeerConnection(ConnectionKind.RELAYED, relay_of(connections[0]), self._rtt_s(peer))
