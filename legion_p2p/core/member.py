"""A member of a run as this peer sees it, and what the table of members (membership.py) asks to be done."""

from enum import Enum

import msgspec

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.forwarding.forest import upload_step
from legion_p2p.core.identity import PeerId


class Liveness(Enum):
    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"
    DEAD = "DEAD"


class Member(msgspec.Struct, frozen=True):
    """One row of the table."""

    announcement: Announcement
    liveness: Liveness
    since: float
    """When it entered its present liveness."""
    next_probe_at: float = 0.0
    met: bool = False
    """A message came from it, over a connection of its own."""
    n_greeted: int = 0
    next_greeting_at: float = 0.0

    @property
    def peer_id(self) -> PeerId:
        return self.announcement.peer_id

    @property
    def counts(self) -> bool:
        """Takes part in ownership and rounds: not dead."""
        return self.liveness is not Liveness.DEAD


def role_of(announcement: Announcement) -> tuple[object, ...]:
    """What decides who owns which shard, who is waited for, and how updates travel."""
    a = announcement
    return (a.ready, a.training, a.weight, a.region, a.reach, a.role, a.stalled, a.avoided, upload_step(a.upload_bps))


def has_duties(announcement: Announcement) -> bool:
    """Whether its role means anything to the others now: only those that hold the model own shards or pass updates on, and rounds
    wait only for those that train."""
    return announcement.ready or announcement.training


def believed(member: Member, region: str) -> Announcement:
    """What a member says of itself, as far as a peer of `region` takes it.

    One of this region that was never met may not exist: it owns nothing, nobody waits for its pushes, and its word on what the
    shards are does not count. A member of another region is met only where regions sync.
    """
    said = member.announcement
    if member.met or said.region != region or not (said.ready or said.training):
        return said
    return msgspec.structs.replace(said, ready=False, training=False)


class Changed(msgspec.Struct, frozen=True):
    """A member came, went, or changed its liveness; None on a side means that it was, or is, not in the table."""

    peer_id: PeerId
    before: Liveness | None
    after: Liveness | None


class Probe(msgspec.Struct, frozen=True):
    """Ask this suspect for a sign of life."""

    peer_id: PeerId
    through_others: bool = True
    """Have others ask it, too. Not where another one named it, which has done so."""


class CheckOn(msgspec.Struct, frozen=True):
    """Ask this member, which this peer watches, for a sign of life. It is no suspect yet."""

    peer_id: PeerId


class Alarm(msgspec.Struct, frozen=True):
    """Announce this peer at once: whom it suspects, or that it lives."""


class Greet(msgspec.Struct, frozen=True):
    """Ask this member for a sign of life, because so far only others told of it."""

    peer_id: PeerId


class Met(msgspec.Struct, frozen=True):
    """The first message came from this member."""

    peer_id: PeerId


class Accuse(msgspec.Struct, frozen=True):
    """Tell others that this peer seems dead, so that they look for themselves, and it can refute."""

    peer_id: PeerId
    incarnation: int


class Refute(msgspec.Struct, frozen=True):
    """Announce this peer at once, with an incarnation of at least `incarnation`."""

    incarnation: int


Effect = Changed | Probe | CheckOn | Alarm | Greet | Met | Accuse | Refute
