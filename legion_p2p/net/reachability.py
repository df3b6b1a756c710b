"""How peers reach each other, as far as this host knows: the Reachability of services.ports."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.reach import NO_CONNECTION, UNKNOWN_REACH, ConnectionKind, OwnReach, PeerConnection, Reach
from legion_p2p.core.reach_finder import ReachVerdict
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.circuits import Circuits
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.ends import relay_of, remote_end
from legion_p2p.net.relay import Relay


@dataclass(frozen=True)
class ConnectionMeter:
    """What the messenger measures of the connection to a peer; None: nothing so far."""

    rtt_s: Callable[[PeerId], float | None]
    rate_bps: Callable[[PeerId], float | None]


class Libp2pReachability:
    """See services.ports.Reachability."""

    def __init__(
        self, dialer: Dialer, changes: NetworkChanges, measured: ConnectionMeter, circuits: Circuits, relay: Relay | None
    ) -> None:
        self.changed: Observers[OwnReach] = Observers()
        self.regained = changes.regained
        self._dialer = dialer
        self._changes = changes
        self._measured = measured
        self._circuits = circuits
        self._relay = relay
        self._verdict = ReachVerdict()
        self._own = UNKNOWN_REACH
        circuits.changed.add(lambda _: self._tell())

    def own(self) -> OwnReach:
        return self._own

    def concluded(self, verdict: ReachVerdict) -> None:
        """This follows from what others saw and did: look for relays or be one."""
        self._verdict = verdict
        self._circuits.wanted = verdict.reach is not Reach.PUBLIC
        self._circuits.needed = verdict.reach in (Reach.PUNCHABLE, Reach.RELAYED)
        if self._relay is not None and verdict.reach is Reach.PUBLIC:
            self._relay.enable()
        elif self._relay is not None and self._circuits.needed and not self._relay.unproven:
            self._relay.disable()
        self._tell()

    def connection(self, peer: PeerId) -> PeerConnection:
        direct = self._dialer.direct(peer)
        if direct:
            is_punched = peer in self._dialer.punching or all(c in self._dialer.punched for c in direct)
            kind = ConnectionKind.PUNCHED if is_punched else ConnectionKind.DIRECT
            end = remote_end(direct[0].muxed_conn)
            host = "" if end is None else end[0]
            return PeerConnection(kind, None, self._measured.rtt_s(peer), self._measured.rate_bps(peer), host)
        connections = self._dialer.connections(peer)
        if not connections:
            return NO_CONNECTION
        relay = relay_of(connections[0])
        return PeerConnection(ConnectionKind.RELAYED, relay, self._measured.rtt_s(peer), self._measured.rate_bps(peer))

    def is_cut_off(self) -> bool:
        return self._changes.is_cut_off

    def heard_of_relay(self, peer: PeerId) -> None:
        self._circuits.hear(peer)

    def _tell(self) -> None:
        verdict, relay = self._verdict, self._relay
        carries = 0 if relay is None or not relay.enabled else relay.ledger.limits.max_circuits
        own = OwnReach(verdict.reach, verdict.nat, verdict.why, self._circuits.relays(), carries)
        before, self._own = self._own, own
        if msgspec.structs.replace(own, why=before.why) != before:  # one more vote for the same is no news
            self.changed.tell(own)
