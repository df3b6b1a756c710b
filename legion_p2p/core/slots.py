"""Who may have how much under way.

    asked -> WAITING                 `ask`: until there is room; the smallest first, then in the order of asking
          -> UNDER WAY               room was found; `Slot.peer` says with which of the peers that were asked for
          -> turned away             `begin` found no room; `retry_s` says when to come again
    UNDER WAY -> over                `end`
    a peer rests until a moment      nothing begins with it before

Never happens: more under way than the limits allow, except one thing that is by itself larger than `max_bytes`; something small
begins before something larger that fits and asked before it has no other reason to wait; two begin where there is room for one.
"""

import math
from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

GUESSED_BPS = 10e6  # while nothing was measured: what many home connections send
MIN_RETRY_S, MAX_RETRY_S = 0.5, 30.0
REMEMBERED_S = 30.0  # a peer that was turned away is expected back for this long
MAX_REMEMBERED = 256  # peers that were turned away; a crowd of more is told MAX_RETRY_S anyway
MAX_RESTING = 4096  # peers that rest; as many as may be members are asked at most


class SlotLimits(msgspec.Struct, frozen=True):
    """What may be under way at a time."""

    max_items: float = math.inf
    max_bytes: float = math.inf
    """Of all of them together."""
    max_per_peer: float = math.inf
    """Items with one peer."""


@dataclass(order=True, slots=True)
class Slot:
    """One thing that is under way, or waits."""

    n_bytes: int
    order: int
    peers: Sequence[PeerId] = field(compare=False)
    peer: PeerId | None = field(default=None, compare=False)
    """With whom it is under way; None: it waits, or is over."""


class Slots:
    """The books of what is under way and what waits."""

    def __init__(self, limits: SlotLimits) -> None:
        self._limits = limits
        self._n_items: Counter[PeerId] = Counter()
        self._n_total = 0
        self._n_bytes = 0
        self._waiting: list[Slot] = []
        self._n_asked = 0
        self._rests_until: BoundedMap[PeerId, float] = BoundedMap(MAX_RESTING)
        self._turned_away: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED)

    @property
    def n_items(self) -> int:
        """Things under way."""
        return self._n_total

    @property
    def n_bytes(self) -> int:
        """Their bytes."""
        return self._n_bytes

    @property
    def is_unused(self) -> bool:
        """Nothing is under way, and nothing waits."""
        return not self._n_total and not self._waiting

    @property
    def has_waiting(self) -> bool:
        """Something waits: `poll` may find room for it."""
        return bool(self._waiting)

    def begin(self, peer: PeerId, n_bytes: int = 0, now: float = 0.0) -> Slot | None:
        """Begin at once; None: there is no room now."""
        slot = self._made((peer,), n_bytes)
        if not self._has_room(n_bytes) or not self._may_begin(peer, now):
            return None
        self._begin(slot, peer)
        self._turned_away.pop(peer, None)
        return slot

    def ask(self, peers: Sequence[PeerId], n_bytes: int = 0) -> Slot:
        """Wait for room with one of `peers`. `poll` tells when it is found."""
        slot = self._made(tuple(peers), n_bytes)
        insort(self._waiting, slot)
        return slot

    def poll(self, now: float) -> Slot | None:
        """Something that waited and is under way now: with that one of its peers that has least under way; of equal ones the
        first."""
        for i, slot in enumerate(self._waiting):
            if not self._has_room(slot.n_bytes):
                return None  # what is behind it is larger, or asked later
            free = [peer for peer in slot.peers if self._may_begin(peer, now)]
            if free:
                del self._waiting[i]
                self._begin(slot, min(free, key=self._n_items.__getitem__))
                return slot
        return None

    def next_deadline(self, now: float) -> float | None:
        """When the next of the peers that rest, and that something waits for, has rested enough."""
        waited_for = {peer for slot in self._waiting for peer in slot.peers}
        return min((until for peer, until in self._rests_until.items() if peer in waited_for and until > now), default=None)

    def end(self, slot: Slot) -> None:
        """It is over, or no longer waits."""
        if slot.peer is None:
            self._waiting = [other for other in self._waiting if other is not slot]
            return
        self._n_bytes -= slot.n_bytes
        self._n_total -= 1
        self._n_items[slot.peer] -= 1
        if not self._n_items[slot.peer]:
            del self._n_items[slot.peer]
        slot.peer = None

    def rest(self, peer: PeerId, until: float) -> None:
        """Begin nothing with `peer` before then."""
        self._rests_until[peer] = until

    def retry_s(self, peer: PeerId, rate_bps: float | None, now: float) -> float:
        """`peer` was turned away: when to come again, at this rate of sending. The more were turned away, the later."""
        self._turned_away[peer] = now
        self._turned_away.drop_while(lambda at: now - at > REMEMBERED_S)
        turn_s = 8 * self._n_bytes / (rate_bps or GUESSED_BPS)
        n_turns = 1 + (len(self._turned_away) - 1) / self._limits.max_items
        return min(max(turn_s * n_turns, MIN_RETRY_S), MAX_RETRY_S)

    def _made(self, peers: Sequence[PeerId], n_bytes: int) -> Slot:
        self._n_asked += 1
        return Slot(n_bytes, self._n_asked, peers)

    def _has_room(self, n_bytes: int) -> bool:
        limits = self._limits
        fits = self._n_bytes + n_bytes <= limits.max_bytes or not self._n_total
        return fits and self._n_total < limits.max_items

    def _may_begin(self, peer: PeerId, now: float) -> bool:
        if self._n_items[peer] >= self._limits.max_per_peer:
            return False
        until = self._rests_until.get(peer)
        if until is not None and until <= now:
            del self._rests_until[peer]
            until = None
        return until is None

    def _begin(self, slot: Slot, peer: PeerId) -> None:
        slot.peer = peer
        self._n_items[peer] += 1
        self._n_total += 1
        self._n_bytes += slot.n_bytes
