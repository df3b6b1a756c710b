"""Bulk lanes between two peers: which peers are tried, and whose connection is let in.

A bulk lane is a TCP connection of its own for the requests of one peer to another, beside their libp2p connection.

`LaneAttempts`, of the side that asks:

    UNTRIED -> tried                   the first bulk request to the peer
    tried   -> PAUSED                  it could not be opened, or broke; the next pause is twice as long, up to MAX_PAUSE_S
    PAUSED  -> tried                   the pause is over
    any     -> UNTRIED                 a lane was opened and lasted

`LaneTickets`, of the side that listens: a ticket is told to one peer, over their libp2p connection, and lets one connection in.

    issued -> redeemed                 once, within TICKET_S
    issued -> forgotten                TICKET_S passed, or the peer was given MAX_TICKETS_PER_PEER later ones

Never happens: a ticket lets in two connections; a peer's tickets displace those of another one, unless MAX_TICKETS are in use.
"""

from collections import Counter
from dataclasses import dataclass

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

FIRST_PAUSE_S, MAX_PAUSE_S = (
    10.0,
    600.0,
)  # a firewall that drops what it does not know is asked six times an hour, not at each push
MAX_PEERS = 4096  # whose failures are remembered: as many as addresses are known of
TICKET_S = 15.0  # for the other side to connect and to authenticate: as long as a handshake may take
MAX_TICKETS_PER_PEER = 4  # it needs 1 for its own requests, 1 for those of the other side, and each once more after a failure
MAX_TICKETS = 1024  # two for each of the connections that a peer may have


class LaneAttempts:
    """To which peers a lane is worth another try."""

    def __init__(self) -> None:
        self._paused: BoundedMap[PeerId, tuple[float, float]] = BoundedMap(MAX_PEERS)  # peer -> (until, length of the pause)

    def may_try(self, peer: PeerId, now: float) -> bool:
        """Whether a lane to `peer` may be opened now."""
        until, _ = self._paused.get(peer, (now, 0.0))
        return until <= now

    def failed(self, peer: PeerId, now: float) -> None:
        """It could not be opened, or broke."""
        _, before_s = self._paused.get(peer, (now, 0.0))
        pause_s = min(max(FIRST_PAUSE_S, 2 * before_s), MAX_PAUSE_S)
        self._paused[peer] = (now + pause_s, pause_s)

    def lasted(self, peer: PeerId) -> None:
        """A lane to it was used, and ended because nothing more was to send."""
        self._paused.pop(peer, None)


@dataclass(frozen=True)
class LaneTicket:
    """What one connection may be used for."""

    peer: PeerId
    for_own_requests: bool
    """This peer asks over the connection; otherwise the other one does."""
    expires_at: float


class LaneTickets:
    """The tickets that were issued and not used."""

    def __init__(self) -> None:
        self._issued: BoundedMap[str, LaneTicket] = BoundedMap(MAX_TICKETS)

    def __len__(self) -> int:
        return len(self._issued)

    def issue(self, name: str, peer: PeerId, for_own_requests: bool, now: float) -> None:
        """`name`: a secret that nobody can guess."""
        self._issued.drop_while(lambda ticket: ticket.expires_at <= now)
        while Counter(ticket.peer for ticket in self._issued.values())[peer] >= MAX_TICKETS_PER_PEER:
            del self._issued[next(name for name, ticket in self._issued.items() if ticket.peer == peer)]
        self._issued[name] = LaneTicket(peer, for_own_requests, now + TICKET_S)

    def redeem(self, name: str, now: float) -> LaneTicket | None:
        """What it is for, once; None: there is no such ticket."""
        ticket = self._issued.pop(name, None)
        return None if ticket is None or ticket.expires_at <= now else ticket
