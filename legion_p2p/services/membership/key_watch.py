"""Ending this peer where an older one runs with its key."""

import trio

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.same_key import Holder, SameKey
from legion_p2p.errors import JoinError
from legion_p2p.observe.events import Events


class KeyWatch:
    """Looks at announcements of this peer's id that this peer did not make."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._same_key = SameKey()
        self._is_shared = trio.Event()
        self._told = ""

    def contradicted(self, announcement: Announcement, own_seq: int) -> None:
        """This peer's id announced what this peer did not."""
        verdict = self._same_key.contradicted(announcement.incarnation, announcement.seq, own_seq, trio.current_time())
        if verdict is None or self._is_shared.is_set():
            return
        where = announcement.addresses[0] if announcement.addresses else "an unknown address"
        ends = "this one is the newer and ends" if verdict is Holder.NEWER else "that one is the newer and should end"
        told = f"another peer at {where} runs with this peer's key: {ends}; each peer needs a key of its own, --identity FILE"
        self._events.error("member.same_key", told)
        if verdict is Holder.NEWER:
            self._told = told
            self._is_shared.set()

    async def end_where_shared(self) -> None:
        """Raises: JoinError, once another peer with this key is found and this one is the newer."""
        await self._is_shared.wait()
        raise JoinError(self._told)
