"""The members as this peer counts them: the table of members, less what it doubts and what is proven."""

from collections.abc import Sequence

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.eligible import Eligible
from legion_p2p.core.evidence import EvidenceBook
from legion_p2p.core.forwarding.forest import Forwarder
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Liveness, Member, believed, role_of
from legion_p2p.core.membership import Membership
from legion_p2p.services.membership.absence_watch import AbsenceWatch
from legion_p2p.services.membership.own import OwnAnnouncement
from legion_p2p.services.membership.region_roles import RegionRoles, Roles


class Roster:
    """Answers who is in the run and who does what there. It changes nothing."""

    def __init__(self, run: str, table: Membership, own: OwnAnnouncement, absence: AbsenceWatch, evidence: EvidenceBook) -> None:
        self._table = table
        self._own = own
        self._absence = absence
        self._evidence = evidence
        self._roles = RegionRoles(run)
        self.juniors: frozenset[PeerId] = frozenset()
        """Those that may not own yet: see core.seniority."""
        self._everyone: tuple[Announcement, ...] = ()
        self._everyone_at: tuple[object, ...] = ()  # what it was made from

    def everyone(self) -> Sequence[Announcement]:
        """This peer's announcement, then those of all members that are not dead, by peer id.

        A member that this peer never met counts as not ready. So does one that was taken for dead and is back, until it says in a
        new incarnation that it has caught up.
        """
        own = self._own.now()
        state = (self._table.revision, self._absence.n_doubted, own.seq)
        if self._everyone_at != state:  # asked for many times between two changes
            others = [m.announcement if m.met else believed(m, own.region) for m in self._table.counted()]
            self._everyone = (own, *(map(self._absence.trusted, others) if self._absence.doubts_some else others))
            self._everyone_at = state
        return self._everyone

    def eligible(self, region: str) -> Eligible:
        """Those that own the shards of `region`. The same object until that changes."""
        return self._roles_in(region).eligible

    def ready(self, region: str) -> tuple[PeerId, ...]:
        """Those in `region` that hold the model. The same object until that changes."""
        return self._roles_in(region).ready

    def training(self, region: str) -> tuple[PeerId, ...]:
        """Those in `region` that train now. The same object until that changes."""
        return self._roles_in(region).training

    def forwarders(self, region: str) -> tuple[Forwarder, ...]:
        """Those in `region` that hold the model, with what the forwarding of updates goes by. The same object until that
        changes."""
        return self._roles_in(region).forwarders

    def is_deposed(self, peer: PeerId) -> bool:
        """It owns nothing, because it made no progress with what it owned, or made two things of it."""
        return peer in self._roles_in(self._own.now().region).deposed

    def excluded(self) -> frozenset[PeerId]:
        """Those that are proven to have lied as owners. The same object until that changes."""
        return self._evidence.excluded()

    def is_heard(self, peer: PeerId) -> bool:
        """It is a member, and not silent."""
        member = self._table.get(peer)
        return member is not None and member.liveness is Liveness.ALIVE

    def is_known(self, peer: PeerId) -> bool:
        """It is this peer, or in the table."""
        return peer == self._table.me or self._table.get(peer) is not None

    def alone(self) -> bool:
        """Nobody else is in the run, as far as known."""
        return not self._table.n_counted

    def announced(self, peer: PeerId) -> Announcement | None:
        """As in `everyone`, of one of the others."""
        member = self._table.get(peer)
        if member is None or not member.counts:
            return None
        return self._absence.trusted(believed(member, self._own.now().region))

    def others(self) -> list[Announcement]:
        """What the other members say that are not dead, without those of this region that this peer never met."""
        region = self._own.now().region
        return [m.announcement for m in self._table.counted() if m.met or m.announcement.region != region]

    def in_region(self) -> list[Member]:
        """The others of this peer's own region that are not dead."""
        region = self._own.now().region
        return [m for m in self._table.counted() if m.announcement.region == region]

    def is_here(self, member: Member) -> bool:
        """It is in this peer's own region."""
        return member.announcement.region == self._own.now().region

    def revision(self) -> tuple[object, ...]:
        """Differs whenever a role may differ."""
        return self._table.roles_revision, *self._beside_table()

    def _beside_table(self) -> tuple[object, ...]:
        """What roles depend on beside the table of members."""
        own_role = None if self._own.current is None else role_of(self._own.current)
        return self._absence.n_doubted, self._evidence.revision, self.juniors, own_role

    def _roles_in(self, region: str) -> Roles:
        self._own.now()
        revision = self._table.duties_revision, *self._beside_table()
        return self._roles.of(region, self.everyone, revision, self._evidence.excluded(), self.juniors)
