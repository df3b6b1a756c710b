"""Owners that make no progress, by the word of the members whose contributions wait: they own nothing for a while.

Each member announces the owners that it has found stalled (core/shard/stall.py). An owner that more than half of the other
training members name has no weight, so its shards go to their standbys; everybody computes that from the same announcements. A
claim ends after a while (core/claims.py), so an owner that was only slow gets its shards back. If it stalls again, the claim
lasts twice as long.

Never happens: one member alone deposes an owner of a run that three or more train; a member deposes others by the claims that it
makes while it does not train; an owner is deposed for ever.
"""

from collections.abc import Iterable

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId


def deposed(announcements: Iterable[Announcement]) -> frozenset[PeerId]:
    """Owners of one region that own nothing now. `announcements`: of its living members, as far as they are believed."""
    voters = [a for a in announcements if a.ready and a.training]
    named: dict[str, int] = {}
    for voter in voters:
        for owner in set(voter.stalled) if voter.stalled else ():
            if owner != voter.peer_id:
                named[owner] = named.get(owner, 0) + 1
    if not named:
        return frozenset()
    training = {peer_of(a) for a in voters}
    return frozenset(PeerId(p) for p, n in named.items() if 2 * n > len(training - {PeerId(p)}))
