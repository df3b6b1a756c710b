"""Deciding that another process runs with this peer's key.

    ALONE    nothing contradicts this peer
    DOUBTED  somebody announced this peer's id with a higher incarnation: as a rule an earlier life of this peer, with a clock
             that was ahead. This peer outbids it
    SHARED   that happened more than EARLIER_LIVES times within WITHIN_S, each time above what this peer had outbid: something
             alive answers, and it has the key

Two such peers would refute each other for ever. The one that has announced itself less often is the newer one, and ends; both say
so. No clock decides: those of the two may differ. Only a holder of the key can sign such announcements: no stranger ends a peer.
"""

from collections import deque
from enum import Enum

EARLIER_LIVES = 2
"""Announcements of earlier lives that are outbid without a word."""

WITHIN_S = 60.0
"""Two peers outbid each other every few seconds; what an earlier life left comes once."""


class Holder(Enum):
    OLDER = "older"
    NEWER = "newer"


class SameKey:
    """What contradicted this peer lately."""

    def __init__(self) -> None:
        self._outbid_at: deque[float] = deque(maxlen=EARLIER_LIVES + 1)
        self._highest = -1

    def contradicted(self, incarnation: int, their_seq: int, own_seq: int, now: float) -> Holder | None:
        """An announcement of this peer's id came, with a higher incarnation than its own. None: it may be an earlier life."""
        if incarnation <= self._highest:  # passed on by another member, or replayed
            return None
        self._highest = incarnation
        self._outbid_at.append(now)
        if len(self._outbid_at) <= EARLIER_LIVES or now - self._outbid_at[0] > WITHIN_S:
            return None
        return Holder.OLDER if own_seq > their_seq else Holder.NEWER
