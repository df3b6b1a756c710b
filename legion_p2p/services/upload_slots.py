"""Giving away shards and blocks, few at a time. Who is turned away is told when to come again, and asks others meanwhile."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from legion_p2p.core.contact import LAST
from legion_p2p.core.identity import PeerId
from legion_p2p.core.upload_slots import FOR_MEMBERS, FREE_BYTES, UploadSlotLimits, UploadSlots
from legion_p2p.core.wire import Busy, Reply
from legion_p2p.services.ports import Messenger


@dataclass(frozen=True)
class ThrottledReply:
    """A reply that is under way until `over` is called, once."""

    reply: Reply
    over: Callable[[], None]
    rank: int = LAST


class UploadSlotService:
    """Decides what is given now."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self.to_newcomers = UploadSlots(UploadSlotLimits())
        self.to_members = UploadSlots(FOR_MEMBERS)
        self.to_first = UploadSlots(FOR_MEMBERS)

    async def give(
        self, peer: PeerId, n_bytes: int, make: Callable[[], Awaitable[Reply]], *, is_member: bool = False, first: bool = False
    ) -> Reply | ThrottledReply:
        """What `make` makes, of about so many bytes; or Busy. `is_member`: `peer` trains in this run. `first`: the others wait
        for what it does with it."""
        rank = 0 if first else LAST
        if n_bytes <= FREE_BYTES:
            return ThrottledReply(await make(), lambda: None, rank)
        giving = self.to_first if first else self.to_members if is_member else self.to_newcomers
        if not giving.begin(peer, n_bytes):
            return Busy(round(1000 * giving.retry_s(peer, self._messenger.bandwidth().upload_bps, trio.current_time())))

        def over() -> None:
            giving.end(peer, n_bytes)

        try:
            return ThrottledReply(await make(), over, rank)
        except BaseException:  # cancelled as well: its place must come free
            over()
            raise
