"""This peer's own announcement: described again when something changed, numbered and signed."""

from collections.abc import Callable

import msgspec

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.announcement import Announcement, sign
from legion_p2p.core.identity import Identity
from legion_p2p.core.member import role_of
from legion_p2p.core.membership import Membership


class OwnAnnouncement:
    """What this peer last said of itself. `table` has its incarnation, which rises when others take it for dead."""

    def __init__(
        self, table: Membership, identity: Identity, describe: Callable[[], Announcement], note_change: Callable[[], None]
    ) -> None:
        """`describe`: what this peer announces now, without its order in time. `note_change`: called if its role may differ."""
        self.seq = 0
        """How often this peer has described itself: its announcements of one incarnation are ordered by that."""
        self.leaving = False
        self.moved = Notify()
        """Notified when this peer is in another region than before."""
        self.current: Announcement | None = None
        """None: it has said nothing yet, or something changed since."""
        self.signed = b""
        self._table = table
        self._identity = identity
        self._describe = describe
        self._note_change = note_change

    def now(self) -> Announcement:
        """What this peer last said, described again if something changed since."""
        return self.current or self.renew()

    def renew(self) -> Announcement:
        """Describe this peer as it is now."""
        before = self.current
        self.seq += 1
        described = self._describe()
        if described.region and described.region != self._table.region:
            self._table.moved(described.region)
            self.moved.notify()
        own = self.current = msgspec.structs.replace(
            self._table.own_part(described), incarnation=self._table.incarnation, seq=self.seq, leaving=self.leaving
        )
        self.signed = sign(self.current, self._identity)
        if before is None or role_of(before) != role_of(own):
            self._note_change()
        return own

    def expire(self) -> None:
        """Something changed: the next call of `now` describes this peer again."""
        self.current = None
