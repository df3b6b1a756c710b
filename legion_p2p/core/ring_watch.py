"""How a large region finds its dead, although each member announces itself so rarely that silence says little.

In a region of up to QUIET_FROM members each announces itself every `announce_s`; in a larger one so rarely that what a member
hears per second does not grow with their number. All members stand on a ring, in the order of a hash of their ids. Each watches
the next N_WATCHED that live: it asks one that it has not heard of for a while for a sign of life. One that gives none is named in
an announcement, so that all look for themselves.

Never happens: a peer chooses whom it watches, or who watches it; a member is taken for dead because it announced itself rarely.
"""

import hashlib
from collections.abc import Callable, Collection
from functools import lru_cache

from legion_p2p.core.identity import PeerId

QUIET_FROM = 7
GROWTH = 1.7  # 10 members hear 2.5 announcements a second, 32 hear 1.2: a kilobyte, of two that control may take
MAX_GROWN = 20.0  # times `announce_s`: with the defaults 40 s, from 41 members on; 64 hear 1.6 announcements a second
N_WATCHED = 2  # one of them may be cut off from here, or die in the same moment as the only one that watches it
MANY_SUSPECTED = 2  # more are dead than one by itself, perhaps with those that watch them: everybody is looked at


def grown(n_members: int) -> float:
    """How many times `announce_s` lies between two announcements of each of so many members."""
    return min(float(max(1.0, n_members / QUIET_FROM) ** GROWTH), MAX_GROWN)


def watched(me: PeerId, others: Collection[PeerId], lives: Callable[[PeerId], bool]) -> frozenset[PeerId]:
    """Whom `me` watches, of the `others` of its region: the next on the ring that live, and those before them."""
    found, n_living = [], 0
    at = _place(me)
    for peer in sorted(others, key=lambda peer: ((place := _place(peer)) < at, place)):
        found.append(peer)
        n_living += lives(peer)
        if n_living == N_WATCHED:
            break
    return frozenset(found)


@lru_cache(maxsize=4096)
def _place(peer: PeerId) -> bytes:
    return hashlib.blake2b(f"legion/watch/{peer}".encode(), digest_size=8).digest()
