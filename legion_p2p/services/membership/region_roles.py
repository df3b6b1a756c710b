"""What the members of each region can do: hold the model, carry shards, train."""

from collections.abc import Callable, Hashable, Sequence

import msgspec

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.eligible import Eligible, eligible
from legion_p2p.core.forwarding.forest import Forwarder, upload_step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import Reach
from legion_p2p.core.roles import Role
from legion_p2p.core.stalls import deposed


class Roles(msgspec.Struct, frozen=True):
    """What the members of one region can do."""

    eligible: Eligible = Eligible()
    ready: tuple[PeerId, ...] = ()
    training: tuple[PeerId, ...] = ()
    deposed: frozenset[PeerId] = frozenset()
    """Those that own nothing now, because they made nothing of what they owned, or two different updates of one version."""
    forwarders: tuple[Forwarder, ...] = ()
    """Those that hold the model, with what the forwarding of updates goes by."""
    made_of: dict[PeerId, tuple[Announcement, Forwarder]] = {}
    """What each of these was made of: most announcements are the same when the roles are computed again."""

    def renewed(
        self,
        run: str,
        announcements: Sequence[Announcement],
        region: str,
        excluded: frozenset[PeerId],
        juniors: frozenset[PeerId] = frozenset(),
    ) -> "Roles":
        """The present roles. What has not changed is the same object, so that others see at once what changed."""
        here = [a for a in announcements if a.region == region]
        honest = [a for a in here if a.peer_id not in excluded] if excluded else here
        voters = [a for a in honest if a.peer_id not in juniors] if juniors else honest
        out = deposed(voters if any(a.ready for a in voters) else honest) | excluded
        owners = eligible(run, region, [a for a in here if a.peer_id not in out] if out else here, juniors)
        ready = tuple([a.peer_id for a in here if a.ready])
        training = tuple([a.peer_id for a in here if a.training])
        made_of = self._made_of(here)
        forwarders = tuple([forwarder for _, forwarder in made_of.values()])
        return Roles(
            self.eligible if owners == self.eligible else owners,
            self.ready if ready == self.ready else ready,
            self.training if training == self.training else training,
            out,
            self.forwarders if forwarders == self.forwarders else forwarders,
            made_of,
        )

    def _made_of(self, here: list[Announcement]) -> dict[PeerId, tuple[Announcement, Forwarder]]:
        made_of: dict[PeerId, tuple[Announcement, Forwarder]] = {}
        for a in here:
            if a.ready:
                before = self.made_of.get(a.peer_id)
                made_of[a.peer_id] = before if before is not None and before[0] is a else (a, forwarder_of(a))
        return made_of


def forwarder_of(announcement: Announcement) -> Forwarder:
    """A member, with what the forwarding of updates goes by."""
    a = announcement
    can_be_dialed = a.role is not Role.CLIENT and a.reach is not Reach.RELAYED
    return Forwarder(a.peer_id, upload_step(a.upload_bps), can_be_dialed, a.avoided)


class RegionRoles:
    """The roles in the region that was asked about last, computed again only when the members changed."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._region = ""
        self._roles = Roles()
        self._revision: Hashable = None

    def of(
        self,
        region: str,
        announcements: Callable[[], Sequence[Announcement]],
        revision: Hashable,
        excluded: frozenset[PeerId] = frozenset(),
        juniors: frozenset[PeerId] = frozenset(),
    ) -> Roles:
        """`announcements`: those of all members, asked for only where needed. `revision` differs whenever a role in them may, or
        `excluded`: those that own nothing, whatever they announce, or `juniors`: those that own nothing while others can."""
        if region != self._region:
            self._region, self._roles, self._revision = region, Roles(), None
        if self._revision != revision:
            self._roles = self._roles.renewed(self._run, announcements(), region, excluded, juniors)
            self._revision = revision
        return self._roles
