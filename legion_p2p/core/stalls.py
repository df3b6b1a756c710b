"""Owners that make no progress, by the word of the members whose contributions wait: they own nothing for a while.

Each member announces the owners that it has found stalled (core/shard/stall.py). An owner that more than half of the other
training members name has no weight, so its shards go to their standbys; everybody computes that from the same announcements. A
claim ends after a while, so an owner that was only slow gets its shards back. If it stalls again, the claim lasts twice as
long.

Never happens: one member alone deposes an owner of a run that three or more train; a member deposes others by the claims that it
makes while it does not train; an owner is deposed for ever.
"""

from collections.abc import Iterable

import msgspec

from legion_p2p.core.announcement import MAX_STALLED, Announcement, peer_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

FIRST_CLAIM_S = 60.0
MAX_CLAIM_S = 3600.0
MAX_CLAIMS = 64  # owners whose earlier claims are remembered


class _StallClaim(msgspec.Struct):
    until: float
    lasts_s: float


class StallClaims:
    """The owners that this peer has found stalled."""

    def __init__(self) -> None:
        self._claims: BoundedMap[PeerId, _StallClaim] = BoundedMap(MAX_CLAIMS)

    def found(self, owner: PeerId, now: float) -> bool:
        """`owner` made no progress; True if that is news."""
        claim = self._claims.get(owner)
        if claim is not None and now < claim.until:
            return False
        again = claim is not None and now < claim.until + MAX_CLAIM_S
        lasts_s = min(2 * claim.lasts_s, MAX_CLAIM_S) if claim is not None and again else FIRST_CLAIM_S
        self._claims[owner] = _StallClaim(now + lasts_s, lasts_s)
        self._claims.touch(owner)
        return True

    def named(self, now: float) -> tuple[PeerId, ...]:
        """Those to announce now, by peer id."""
        return tuple(sorted(peer for peer, claim in self._claims.items() if now < claim.until)[:MAX_STALLED])


def deposed(announcements: Iterable[Announcement]) -> frozenset[PeerId]:
    """Owners of one region that own nothing now. `announcements`: of its living members, as far as they are believed."""
    voters = [a for a in announcements if a.ready and a.training]
    named: dict[str, int] = {}
    for voter in voters:
        for owner in set(voter.stalled):
            if owner != voter.peer_id:
                named[owner] = named.get(owner, 0) + 1
    if not named:
        return frozenset()
    training = {peer_of(a) for a in voters}
    return frozenset(PeerId(p) for p, n in named.items() if 2 * n > len(training - {PeerId(p)}))
