"""Finding out that this peer was away: stopped, asleep or cut off, while the others went on."""

from collections.abc import Callable, Sequence

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.absence import Absence
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Changed, Liveness, Member
from legion_p2p.core.membership import MembershipConfig


class AbsenceWatch:
    """core/absence.py with the clocks of this machine. A method that may find this peer absent returns whether it did."""

    def __init__(self, me: PeerId, config: MembershipConfig, running_clock: Callable[[], float]) -> None:
        self.was_away = False
        """The others went on without this peer since this was last looked at."""
        self.noticed = Notify()
        """Notified when `was_away` becomes true."""
        self._running_clock = running_clock
        self._absence = Absence(me, config.suspect_after_s + config.grace_s, self._clocks())

    @property
    def n_doubted(self) -> int:
        """Rises with every change of the members that are not trusted to be up to date."""
        return self._absence.n_doubted

    @property
    def doubts_some(self) -> bool:
        """Some members are not trusted to be up to date."""
        return self._absence.doubts_some

    def trusted(self, announcement: Announcement) -> Announcement:
        """The announcement as it counts: a peer on probation is not ready."""
        return self._absence.trusted(announcement)

    def end_probation(self) -> bool:
        return self._absence.end_probation(trio.current_time())

    def look(self) -> bool:
        """Compare the clocks with those of the last look."""
        return self._note(self._absence.look(self._clocks()))

    def accused_by(self, accuser: PeerId, others: Sequence[PeerId]) -> bool:
        return self._note(self._absence.accused_by(accuser, others, trio.current_time()))

    def judge(self, change: Changed, member: Member | None, others: Callable[[], Sequence[PeerId]]) -> bool:
        """A `member` of this peer's region, which has the `others`, came, went or changed."""
        peer, now = change.peer_id, trio.current_time()
        if change.after is Liveness.DEAD:
            self._absence.died(peer, now)
        elif change.after is None:
            self._absence.gone(peer)
        elif change.after is Liveness.ALIVE:
            lost_at = self._absence.lives(peer)
            if lost_at is None or member is None or not member.announcement.ready:
                return False  # one that was started again follows by itself, before it says that it is ready
            return self._note(self._absence.returned(peer, member.announcement.incarnation, lost_at, others(), now))
        return False

    def _note(self, was_away: bool) -> bool:
        if was_away:
            self.was_away = True
            self.noticed.notify()
        return was_away

    def _clocks(self) -> tuple[float, float]:
        return trio.current_time(), self._running_clock()
