"""How a peer can be reached by others, and how it reaches each of them.

| reach | others connect to it | how it is found out |
|---|---|---|
| public | by dialing it | peers of other networks dialed it |
| punchable | through a relay, then directly: its NAT lets holes be punched | dials fail; all see it at the same port |
| relayed | through a relay only | dials fail; each sees it at another port |
| unknown | | nobody has tried to dial it, or too few have |

Nothing here is guessed: what was not found out is UNKNOWN or None, and is shown as that.
"""

from enum import Enum

import msgspec

from legion_p2p.core.identity import PeerId


class Reach(Enum):
    """By which way others get a connection to a peer."""

    UNKNOWN = "unknown"
    PUBLIC = "public"
    PUNCHABLE = "punchable"
    RELAYED = "relayed"

    @property
    def rank(self) -> int:
        """How well others can reach the peer; lower is better: those that they connect to directly, those of which it is not
        known, those that only relays lead to."""
        return 2 if self is Reach.RELAYED else 1 if self is Reach.UNKNOWN else 0


class NatKind(Enum):
    """What stands between a peer and the Internet."""

    UNKNOWN = "unknown"
    NONE = "none"
    CONE = "cone"
    """Maps a socket to one port, whoever it talks to: holes can be punched."""
    SYMMETRIC = "symmetric"
    """Maps a socket to another port for each peer that it talks to."""


class ConnectionKind(Enum):
    """What a connection to a peer runs over."""

    UNKNOWN = "unknown"
    DIRECT = "direct"
    PUNCHED = "punched"
    RELAYED = "relayed"


class OwnReach(msgspec.Struct, frozen=True):
    """How others reach this peer, as far as it knows."""

    reach: Reach = Reach.UNKNOWN
    nat: NatKind = NatKind.UNKNOWN
    why: str = "nobody has tried to dial this peer yet"
    """What it was concluded from, in words for people."""
    relays: tuple[PeerId, ...] = ()
    """Relays that hold a reservation for this peer."""
    circuits: int = 0
    """How many circuits this peer carries at most for others; 0: it is no relay."""


UNKNOWN_REACH = OwnReach()


class PeerConnection(msgspec.Struct, frozen=True):
    """The connection to one peer. None: not measured."""

    kind: ConnectionKind = ConnectionKind.UNKNOWN
    """UNKNOWN where there is no connection now."""
    relay: PeerId | None = None
    """The peer that carries it, where `kind` is RELAYED."""
    rtt_s: float | None = None
    """Shortest of the last few round trips."""
    rate_bps: float | None = None
    """Bits per second that transfers over it have lately reached, in the faster direction."""
    host: str = ""
    """The IP address at its other end; empty where it leads through a relay, or that is not known."""


NO_CONNECTION = PeerConnection()
