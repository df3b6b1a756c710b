"""What the machine of a follower (follower.py) is told, and what it asks for."""

import msgspec

from legion_p2p.core.announcement import Mark
from legion_p2p.core.forwarding.overdue import Promise
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.life_events import Shared


class Announced(msgspec.Struct, frozen=True):
    """A member of this region holds this; None: nothing that counts, or nothing any more."""

    peer: PeerId
    mark: Mark | None


class Outvoted(msgspec.Struct, frozen=True):
    """More than half of the others hold this, which is no part of the chain that this peer made as the owner; None: not so."""

    mark: Mark | None


class Parted(msgspec.Struct, frozen=True):
    """What most of the others hold was fetched: it is newer than what this peer has as the owner, and does not follow from it."""


class Shown(msgspec.Struct, frozen=True):
    """A message of `peer` shows that it has more than is held here."""

    peer: PeerId
    proved: bool = False
    """By a signed update, of a peer that may make them: no earlier failure speaks against asking."""


class AskBegun(msgspec.Struct, frozen=True):
    """`peer` is being asked on behalf of another part, for as long as it takes: until `AskEnded` it needs no other question."""

    peer: PeerId


class AskEnded(msgspec.Struct, frozen=True):
    """What `AskBegun` began has ended."""

    peer: PeerId


class FetchEnded(msgspec.Struct, frozen=True):
    """`peer` was asked."""

    peer: PeerId
    came_forward: bool
    trusted: bool = False
    """It is a peer whose word is believed: it is asked again after the shortest pause."""


class TurnedAway(msgspec.Struct, frozen=True):
    """`peer` was asked, and has no time before `retry_s`."""

    peer: PeerId
    retry_s: float


class Unreachable(msgspec.Struct, frozen=True):
    """`peer` was asked and did not answer; whether it lives is decided by membership."""

    peer: PeerId


class Promised(msgspec.Struct, frozen=True):
    """The owner has made a version, and it is on its way."""

    promise: Promise


class NotComing(msgspec.Struct, frozen=True):
    """What should send this will not: it has sent something else."""

    promise: Promise


class Inquired(msgspec.Struct, frozen=True):
    """What `peer` answered that was asked which version it has; None: nothing."""

    peer: PeerId
    version: int | None


class Fetch(msgspec.Struct, frozen=True):
    """Ask this peer for what is missing here; then `FetchEnded`, `TurnedAway` or `Unreachable`."""

    peer: PeerId
    within_s: float | None = None
    """How long it may take at least; None: as long as it takes others."""


Event = (
    Shared
    | Announced
    | Outvoted
    | Parted
    | Shown
    | Promised
    | NotComing
    | Inquired
    | AskBegun
    | AskEnded
    | FetchEnded
    | TurnedAway
    | Unreachable
)
