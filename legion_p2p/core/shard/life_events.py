"""What concerns every machine of a shard."""

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.wire import Inclusion


class Owners(msgspec.Struct, frozen=True):
    """These peers own the shard and stand by, by the members that this peer knows."""

    owners: Ownership


class Advanced(msgspec.Struct, frozen=True):
    """The shard has another version here."""

    version: int
    newest: int
    """Number of the newest contribution of this peer that it contains; -1: none."""
    included: tuple[Inclusion, ...] = ()
    """What the new version contains more than the one before; where the shard was taken over whole, all that it contains."""
    followed: bool = False
    """It is another peer's update."""


class TakenBack(msgspec.Struct, frozen=True):
    """The shard is in an earlier version again (provisional.py)."""

    version: int


class Gone(msgspec.Struct, frozen=True):
    """A peer is dead or has left."""

    peer: PeerId


Shared = Owners | Advanced | TakenBack | Gone
