"""Waiting for a slot: a semaphore over peers."""

import math
from collections.abc import Sequence

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.slots import Slot, SlotLimits, Slots


class PeerSemaphore:
    """Lets few things be under way at a time, of all and of each peer. What may begin when: core/slots.py."""

    def __init__(self, limits: SlotLimits) -> None:
        self._slots = Slots(limits)
        self._woken: dict[int, trio.Event] = {}  # by `order` of the slots that tasks wait for: each wakes its own task only

    @property
    def is_unused(self) -> bool:
        """Nobody has a slot or waits for one."""
        return self._slots.is_unused

    def slot(self, peers: Sequence[PeerId], n_bytes: int = 0) -> "SlotWait":
        """Wait for a slot with one of `peers`, for something of this many bytes; the block knows which, and has the slot until it
        ends."""
        return SlotWait(self, peers, n_bytes)

    async def acquire(self, peers: Sequence[PeerId], n_bytes: int = 0) -> Slot:
        """As `slot`, until `release`."""
        if len(peers) == 1 and not n_bytes and not self._slots.has_waiting:
            free = self._slots.begin(peers[0], now=trio.current_time())
            if free is not None:
                return free
        slot = self._slots.ask(peers, n_bytes)
        try:
            if n_bytes:
                await trio.lowlevel.checkpoint()  # whatever is asked for in the same moment is compared by size first
            self._admit()
            if slot.peer is None:
                await self._wait(slot)
        except BaseException:  # cancelled as well: a slot that nobody has must not stay taken
            self.release(slot)
            raise
        return slot

    def release(self, slot: Slot) -> None:
        """What the slot was for is over."""
        self._slots.end(slot)
        self._admit()

    def rest(self, peer: PeerId, until: float) -> None:
        """Give no slot with `peer` before then."""
        self._slots.rest(peer, until)
        for woken in self._woken.values():
            woken.set()  # the tasks wait until another moment now

    async def _wait(self, slot: Slot) -> None:
        try:
            while slot.peer is None:
                woken = self._woken[slot.order] = trio.Event()
                deadline = self._slots.next_deadline(trio.current_time())
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await woken.wait()
                self._admit()
        finally:
            self._woken.pop(slot.order, None)

    def _admit(self) -> None:
        if not self._slots.has_waiting:
            return
        now = trio.current_time()
        while (slot := self._slots.poll(now)) is not None:
            if slot.order in self._woken:
                self._woken[slot.order].set()


class SlotWait:
    """A slot for the length of an `async with` block."""

    def __init__(self, semaphore: PeerSemaphore, peers: Sequence[PeerId], n_bytes: int) -> None:
        self._semaphore = semaphore
        self._peers = peers
        self._n_bytes = n_bytes
        self._slot: Slot | None = None

    async def __aenter__(self) -> PeerId:
        self._slot = await self._semaphore.acquire(self._peers, self._n_bytes)
        assert self._slot.peer is not None
        return self._slot.peer

    async def __aexit__(self, *_: object) -> None:
        if self._slot is not None:
            self._semaphore.release(self._slot)
