"""What goes first, where one upload is not enough for everything.

A stream carries one frame after the other, so a `PriorityQueue` orders what waits for it:

    put   -> behind all of the same or a higher priority, before all of a lower one that has not begun
    begun -> finished first; it is as urgent as the most urgent one behind it (`urgency`)

All streams of a host share its upload, so a `PriorityGate` decides which of them may write bulk now:

    nothing of a higher priority waits    -> OPEN: a piece of PIECE_BYTES
    something of a higher priority waits  -> a trickle of TRICKLE_BYTES every TRICKLE_S for all that are held up together
    CATCH_UP waits, and DOWNLOAD as well  -> DOWNLOAD gets a piece for every CATCH_UP_WEIGHT pieces of CATCH_UP that were written

Never happens: something is held up by what has a lower priority; something waits for ever.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PIECE_BYTES = 1 << 16  # of what can wait, between two looks at whether something else waits
TRICKLE_BYTES, TRICKLE_S = 1 << 13, 0.25  # 256 kbit/s, so that no stream stalls and none is given up
CATCH_UP_WEIGHT = 3  # members that are behind train already; but they must not keep others from joining


class Priority(IntEnum):
    """Of a request or a reply: the lower value goes first."""

    CONTROL = 0
    """Small and urgent: on a stream of its own, which bulk never delays."""
    ROUND = 1
    """Bulk that others wait for before they can train on: pushes, updates, and what an owner needs to own."""
    CATCH_UP = 2
    """Bulk for a member that is behind: it trains meanwhile."""
    DOWNLOAD = 3
    """Bulk for anybody else: peers that join, and peers that copy checkpoints."""

    @property
    def lane(self) -> Literal["control", "bulk"]:
        """Which of the two streams to a peer carries it, and the replies to it."""
        return "bulk" if self else "control"


@dataclass(frozen=True)
class ThrottledReply(Generic[T_co]):
    """A reply that takes an upload slot until it is on its way."""

    reply: T_co
    sent: Callable[[], None]
    """Called once, when the reply is written or never will be."""
    priority: Priority = Priority.DOWNLOAD


class PriorityQueue(Generic[T]):
    """What waits for one stream."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Priority, T]] = deque()
        self._has_begun = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T, priority: Priority) -> None:
        """It waits for its turn."""
        at = len(self._waiting)
        while at > self._has_begun and self._waiting[at - 1][0] > priority:
            at -= 1
        self._waiting.insert(at, (priority, item))

    @property
    def urgency(self) -> Priority | None:
        """The highest priority of all that waits, which the first one must not hold up; None: nothing waits."""
        return min((priority for priority, _ in self._waiting), default=None)

    def first(self) -> T:
        """Whose turn it is. Raises: IndexError."""
        return self._waiting[0][1]

    def begin(self) -> None:
        """The first one is being written: nothing overtakes it any more."""
        self._has_begun = True

    def pop(self) -> T:
        """The first one is done. Raises: IndexError."""
        self._has_begun = False
        return self._waiting.popleft()[1]


class PriorityGate:
    """Which bulk may pass now."""

    def __init__(self) -> None:
        self._waiting: Counter[Priority] = Counter()
        self._credit = 0.0  # pieces of DOWNLOAD that CATCH_UP owes
        self._next_trickle_at = -math.inf

    def enter(self, priority: Priority) -> None:
        """A stream has something of this priority to write."""
        self._waiting[priority] += 1

    def leave(self, priority: Priority) -> None:
        """It has not any more."""
        self._waiting[priority] -= 1
        if not self._waiting[priority]:
            del self._waiting[priority]

    def is_open(self, priority: Priority) -> bool:
        """Whether a piece of this priority may be written now."""
        return priority <= min(self._waiting, default=priority) or priority is self.choose(self._waiting)

    def choose(self, waiting: Collection[Priority]) -> Priority:
        """Of which of these priorities the next piece is, where one has to wait for the other."""
        first, last = min(waiting), max(waiting)
        return last if first is Priority.CATCH_UP and last is Priority.DOWNLOAD and self._credit >= 1 else first

    def passed(self, priority: Priority) -> None:
        """A piece of this priority is written."""
        if priority is Priority.CATCH_UP:
            self._credit = min(self._credit + 1 / CATCH_UP_WEIGHT, 1.0)
        elif priority is Priority.DOWNLOAD:
            self._credit = max(self._credit - 1, 0.0)

    def reserve_trickle(self, now: float) -> float:
        """When TRICKLE_BYTES may be written all the same. Each call takes the next moment."""
        self._next_trickle_at = max(self._next_trickle_at, now) + TRICKLE_S
        return self._next_trickle_at
