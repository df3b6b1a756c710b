"""Upload slots: shards and blocks are given away few at a time, because a peer trains first.

A peer that is turned away is told when to come again, and asks others meanwhile. What is under way, and who comes when, is
decided in core/slots.py; each priority has books of its own, so that a crowd of newcomers takes no slot from members.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.slots import SlotLimits, Slots
from legion_p2p.core.wire import Busy, Message
from legion_p2p.services.ports import Messenger

R = TypeVar("R", bound=Message)

FREE_BYTES = 64 << 10  # a smaller reply takes no slot: to be asked for it twice costs more
TO_OTHERS = SlotLimits(max_items=4, max_bytes=64 << 20, max_per_peer=2)
"""Four replies fill any connection; more only make each slower, and hold more memory: that of the two largest shards. To one peer
two go at a time, the second while it looks at the first."""
TO_MEMBERS = SlotLimits(max_items=8, max_bytes=128 << 20, max_per_peer=4)
"""Members that are behind should not wait for peers that only join."""


class UploadSlotService:
    """Decides what is given away now."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._slots = {
            Priority.ROUND: Slots(TO_MEMBERS), Priority.CATCH_UP: Slots(TO_MEMBERS), Priority.DOWNLOAD: Slots(TO_OTHERS)
        }  # fmt: skip

    def n_under_way(self, priority: Priority) -> int:
        """Replies of this priority that have a slot."""
        return self._slots[priority].n_items

    async def give(
        self, peer: PeerId, n_bytes: int, make: Callable[[], Awaitable[R]], priority: Priority = Priority.DOWNLOAD
    ) -> ThrottledReply[R] | Busy:
        """What `make` makes, of about this many bytes; or Busy."""
        if n_bytes <= FREE_BYTES:
            return ThrottledReply(await make(), lambda: None, priority)
        slots, now = self._slots[priority], trio.current_time()
        slot = slots.begin(peer, n_bytes, now)
        if slot is None:
            return Busy(round(1000 * slots.retry_s(peer, self._messenger.bandwidth().upload_bps, now)))
        try:
            return ThrottledReply(await make(), lambda: slots.end(slot), priority)
        except BaseException:  # cancelled as well: the slot must come free
            slots.end(slot)
            raise
