"""Waiting for a slot: a semaphore over peers."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.identity import PeerId
from legion_p2p.core.slots import Slot, SlotLimits, Slots


class PeerSemaphore:
    """Lets few things be under way at a time, of all and of each peer. What may begin when: core/slots.py."""

    def __init__(self, limits: SlotLimits) -> None:
        self._slots = Slots(limits)
        self._changed = Notify()

    @property
    def is_unused(self) -> bool:
        """Nobody has a slot or waits for one."""
        return self._slots.is_unused

    @asynccontextmanager
    async def slot(self, peers: Sequence[PeerId], n_bytes: int = 0) -> AsyncIterator[PeerId]:
        """Wait for a slot with one of `peers`, for something of this many bytes; the block knows which, and has the slot until it
        ends."""
        slot = self._slots.ask(peers, n_bytes)
        try:
            if n_bytes:
                await trio.lowlevel.checkpoint()  # whatever is asked for in the same moment is compared by size first
            self._admit()
            while slot.peer is None:
                deadline = self._slots.next_deadline(trio.current_time())
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._changed.wait()
                self._admit()
            yield slot.peer
        finally:
            self._slots.end(slot)
            self._admit()

    def rest(self, peer: PeerId, until: float) -> None:
        """Give no slot with `peer` before then."""
        self._slots.rest(peer, until)

    def _admit(self) -> None:
        now = trio.current_time()
        began: Slot | None = None
        while (slot := self._slots.poll(now)) is not None:
            began = slot
        if began is not None:
            self._changed.notify()
