"""What a member's pushes weigh by how they have gone with the common trend, over many rounds.

A rule sees one round. A push of ordinary length that goes against the others a little each time (IPM) is nothing unusual in any
of them, and unmistakable after five. So each member has a standing, in thousandths:

    alignment   the cosine between its push and the rest of what the round came to
    standing    moves by GAIN of the way to that, in units of what is usual in the round, between -1000 and 1000
    weight      all from FULL on, nothing at NONE and below, and in proportion between; of a newcomer a third

A member of no weight is compared all the same, so that it can come back. Unusual data make a push go less with the others, not
against them: such a member weighs less, but something.

The standings before a round and its pushes give those after it, in the same bits everywhere: they are in the header of each
update, so that everybody knows them and an owner can be held to them.

Never happens: a member gains by a number that it makes up; members whose standings are all at the end weigh nothing together.
"""

# Shape suffixes: P = points (pushes), in fp64.

import math
from collections.abc import Sequence

from legion_p2p.tensor.robust.geometry import Floats

SCALE = 1000
NEWCOMER = -250  # of a member of which nothing is known
FULL = 250
NONE = -500
GAIN = 0.25  # of the newest round. More: liars are found sooner, and honest members of noisy gradients are doubted more often
SPREADS = 3.0  # an alignment is large if it is as far from zero as this many times the spread: less may be noise
SPREAD_OF_MEDIAN = 1.4826  # standard deviations of a normal distribution in a median deviation
FEW = 3  # of fewer pushes nobody knows which one goes against the others


def weight_of(standing: int) -> float:
    """What a push counts, of its weight."""
    return min(1.0, max(0.0, (standing - NONE) / (FULL - NONE)))


def next_standings(standings: Sequence[int], alignments: Sequence[float | None]) -> tuple[int, ...]:
    """After a round with these alignments. None: it pushed nothing."""
    known = sorted(a for a in alignments if a is not None)
    if len(known) < FEW:
        return tuple(standings)
    usual = _lower_median(known)
    spread = SPREAD_OF_MEDIAN * _lower_median(sorted(abs(a - usual) for a in known))
    unit = max(usual, SPREADS * spread)
    if not (usual > 0 and unit > 0):
        return tuple(standings)  # most go against each other, as at first where each member has data of its own kind
    return tuple(
        before if a is None else round(before + GAIN * (SCALE * min(1.0, max(-1.0, a / unit)) - before))
        for before, a in zip(standings, alignments, strict=True)
    )


def alignments(apart_PP: Floats, share_P: Sequence[float]) -> list[float | None]:
    """Of each point with the rest of their combination by `share_P`, as a cosine.

    `apart_PP`: squared distances between the points and, in the last row and column, to the origin.
    """
    n = len(share_P)
    own_P = apart_PP[-1, :n].tolist()
    with_all_P = [_dot(share_P, [(own_P[i] + own_P[j] - apart) / 2 for j, apart in enumerate(apart_PP[i, :n].tolist())])
                  for i in range(n)]  # fmt: skip
    square = _dot(share_P, with_all_P)
    found: list[float | None] = []
    for share, own, with_all in zip(share_P, own_P, with_all_P, strict=True):
        rest = square - 2 * share * with_all + share * share * own
        length = own * rest
        found.append(max(-1.0, min(1.0, (with_all - share * own) / math.sqrt(length))) if own > 0 and length > 0 else None)
    return found


def _dot(a_P: Sequence[float], b_P: Sequence[float]) -> float:
    """In order."""
    out = 0.0
    for a, b in zip(a_P, b_P, strict=True):
        out += a * b
    return out


def _lower_median(ordered: Sequence[float]) -> float:
    return ordered[(len(ordered) - 1) // 2]
