"""What one peer has found out about others and announces for a while: each claim ends, and comes back twice as long if it is
found again."""

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

FIRST_CLAIM_S = 60.0
MAX_CLAIM_S = 3600.0
MAX_CLAIMS = 64  # peers whose earlier claims are remembered
MAX_NAMED = 8  # in one announcement: with more, most of a region is in trouble, and it is not their fault


class _TimedClaim(msgspec.Struct):
    until: float
    lasts_s: float


class TimedClaims:
    """The peers that something was found out about."""

    def __init__(self) -> None:
        self._claims: BoundedMap[PeerId, _TimedClaim] = BoundedMap(MAX_CLAIMS)

    def found(self, peer: PeerId, now: float) -> bool:
        """It was found of `peer`; True if that is news."""
        claim = self._claims.get(peer)
        if claim is not None and now < claim.until:
            return False
        again = claim is not None and now < claim.until + MAX_CLAIM_S
        lasts_s = min(2 * claim.lasts_s, MAX_CLAIM_S) if claim is not None and again else FIRST_CLAIM_S
        self._claims[peer] = _TimedClaim(now + lasts_s, lasts_s)
        self._claims.touch(peer)
        return True

    def named(self, now: float) -> tuple[PeerId, ...]:
        """Those to announce now, by peer id."""
        return tuple(sorted(peer for peer, claim in self._claims.items() if now < claim.until)[:MAX_NAMED])
