"""The reach that this peer announces: what the network found out, without its flicker."""

import trio

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.reach import NatKind, OwnReach, Reach
from legion_p2p.core.steady_reach import SteadyReach
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService


class AnnouncedReach:
    """What others are told, and when: at once, where it is worse than what they know."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._me = ctx.messenger.peer_id
        self._events = ctx.events
        self._members = members
        self._reachability = ctx.reachability
        self._steady = SteadyReach()
        self._told = (Reach.UNKNOWN, NatKind.UNKNOWN)
        ctx.reachability.changed.add(self._on_changed)
        members.announcements.add(self._on_announced)
        self._tell(ctx.reachability.own())  # what was found out while the run was looked for

    def now(self) -> Reach:
        """What to announce now."""
        return self._steady.look(self._reachability.own().reach, trio.current_time())

    def _on_announced(self, announcement: Announcement) -> None:
        if announcement.circuits and announcement.peer_id != self._me:
            self._reachability.heard_of_relay(peer_of(announcement))

    def _on_changed(self, own: OwnReach) -> None:
        self._tell(own)
        self._members.announcer.announce_soon()

    def _tell(self, own: OwnReach) -> None:
        if (own.reach, own.nat) != self._told:  # and not only its relays
            self._told = (own.reach, own.nat)
            self._events.emit("reach.found", reach=own.reach.value, nat=own.nat.value, reason=own.why)
