"""What the machine of a follower (follower.py) is told, and what it asks for."""

import msgspec

from legion_p2p.core.announcement import Mark
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.events import Shared


class Announced(msgspec.Struct, frozen=True):
    """A member of this region holds this; None: nothing that counts, or nothing any more."""

    peer: PeerId
    mark: Mark | None


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


class Fetch(msgspec.Struct, frozen=True):
    """Ask this peer for what is missing here; then `FetchEnded`, `TurnedAway` or `Unreachable`."""

    peer: PeerId


Event = Shared | Announced | Shown | AskBegun | AskEnded | FetchEnded | TurnedAway | Unreachable
