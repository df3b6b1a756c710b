"""Which region a shard syncs with next: a matching of the regions, one per shard and epoch, that all compute alike.

News should reach all n regions in log2(n) epochs. Random pairs take half as many again, because the last of them often come
to regions that know already. So regions are put into an order by hashing, for a cycle of log2(n) epochs, and in epoch j of
it those sync whose places add up to 2^(j+1) - 1, modulo n: two such reflections in a row are a rotation by 2^(j+1), so those
that know double each time. Where n is odd one sits out. The next cycle has another order, and so other pairs. All peers that
see the same regions and the same epoch agree; a peer that sees others syncs with somebody as well, which does no harm: each
sync stands for itself. An epoch is `every` versions long, and is counted from the versions that are announced, by medians,
so that neither one member nor one region can push it on alone.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import median_high, median_low

from legion_p2p.core.rendezvous import unit_hash

LATE = 4  # the second of a pair waits this many times as long, then begins itself: an answer may take longer than a round
SILENT = 4  # times the versions between two syncs, after which an owner whose relay brings nothing syncs by itself


def epoch_of(versions: Mapping[str, Sequence[int]], every: int) -> int:
    """The epoch of a shard, by the versions of it that the members of each region announce."""
    middles = [median_low(announced) for announced in versions.values() if announced]
    return median_high(middles) // every if middles else 0


def partner(run_id: str, shard: int, epoch: int, regions: Collection[str], mine: str) -> str | None:
    """The region that `mine` syncs with in this epoch; None: no region."""
    known = set(regions) | {mine}
    n = len(known)
    cycle, j = divmod(epoch, max(1, (n - 1).bit_length()))
    order = sorted(known, key=lambda region: (unit_hash("legion/meet", run_id, str(shard), str(cycle), region), region))
    at = order.index(mine)
    other = (2 ** (j + 1) - 1 - at) % n
    return order[other] if other != at else None


def patience(mine: str, other: str, every: int) -> int:
    """After how many versions since its last sync `mine` begins one: as a rule the region whose label sorts first does."""
    return every if mine < other else LATE * every
