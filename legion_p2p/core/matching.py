"""Which region a shard's owner meets next: a random matching of the regions, one a shard and epoch, that all compute alike.

Regions are put into an order by hashing, and neighbours in it meet: the first and the second, the third and the fourth, and so
on; where their number is odd the last one sits out. All who see the same regions and the same epoch agree; who sees others meets
somebody as well, which does no harm: each meeting stands for itself. An epoch is `every` versions long, and is counted from the
versions that are announced, by medians, so that neither one member nor one region can push it on alone.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import median_high, median_low

from legion_p2p.core.rendezvous import unit_hash

LATE = 4  # the second of a pair waits this many times as long, then begins itself: an answer may take longer than a round


def epoch_of(versions: Mapping[str, Sequence[int]], every: int) -> int:
    """The epoch of a shard, by the versions of it that the members of each region announce."""
    middles = [median_low(announced) for announced in versions.values() if announced]
    return median_high(middles) // every if middles else 0


def partner(run_id: str, shard: int, epoch: int, regions: Collection[str], mine: str) -> str | None:
    """The region that `mine` meets in this epoch; None: nobody."""
    order = sorted(
        set(regions) | {mine}, key=lambda region: (unit_hash("legion/meet", run_id, str(shard), str(epoch), region), region)
    )
    at = order.index(mine)
    other = at + 1 if at % 2 == 0 else at - 1
    return order[other] if other < len(order) else None


def patience(mine: str, other: str, every: int) -> int:
    """After how many versions since their last meeting `mine` begins one: the region whose label sorts first does, as a rule."""
    return every if mine < other else LATE * every
