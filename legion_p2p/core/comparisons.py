"""Which members are asked where their chain and this peer's part, and when.

Marks are compared now and then, not at each announcement. Two chains part for honest reasons as well, as after a split of the
network, and come together by themselves; so a member is asked rarely.

Never happens: a member is asked more than once in `ASK_EVERY_S`; the books grow with members that have left.
"""

from collections.abc import Sequence

from legion_p2p.core.announcement import MAX_MEMBERS
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import State

LOOK_EVERY_S = 10.0  # at the marks of one member
ASK_EVERY_S = 60.0
MAX_FETCHED_BYTES = 16 << 20  # of updates, to get the first of them


class Comparisons:
    """When this peer last looked at the marks of each member, and asked it."""

    def __init__(self) -> None:
        self._looked_at: BoundedMap[PeerId, float] = BoundedMap(MAX_MEMBERS)
        self._asked_at: BoundedMap[PeerId, float] = BoundedMap(MAX_MEMBERS)

    def may_look(self, peer: PeerId, now: float) -> bool:
        """Whether its marks are to be looked at now; if so, that is noted."""
        if now - self._looked_at.get(peer, -LOOK_EVERY_S) < LOOK_EVERY_S:
            return False
        if now - self._asked_at.get(peer, -ASK_EVERY_S) < ASK_EVERY_S:
            return False
        self._looked_at[peer] = now
        return True

    def asked(self, peer: PeerId, now: float) -> None:
        """It is being asked."""
        self._asked_at[peer] = now


def parting(common: Sequence[State], since: Sequence[int]) -> State | None:
    """The newest state that the other peer's chain came through as well; None where there is none, or what follows is too much.

    `common`: states of this peer's chain, the oldest first. `since`: the other's answer for each (`AncestryReply`).
    """
    passed = [(state, n_bytes) for state, n_bytes in zip(common, since, strict=False) if n_bytes >= 0]
    if not passed or passed[-1][1] > MAX_FETCHED_BYTES:
        return None
    return passed[-1][0]
