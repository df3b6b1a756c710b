"""The members by which other regions know a region.

A member knows its own region in full, and of each other region a few envoys. They announce themselves to the whole run, and say
how many members their region has and whether all of those are done. A hash chooses them among the members that hold the model, so
everybody in the region computes the same ones. One that is no envoy any more says so, and other regions forget it.

What an envoy says of its region is a claim: where several say different things, the lower median counts. None of it decides who
owns a shard.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from heapq import nsmallest
from statistics import median_low

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId

N_ENVOYS = 4  # of a region: with fewer, a few that fail or lie at once cut it off from newcomers
MAX_ENVOYS_KEPT = 2 * N_ENVOYS  # of another region: while they change, and no more, because anybody can claim to be one
FAR_GROWTH = 2.0  # 76 envoys, those of 20 regions, are heard once in two seconds
MAX_FAR_GROWN = 60.0  # times `announce_s`: with the defaults two minutes
HEARS_OF_NOBODY = 5.0  # times `announce_s`, while no other region is known: the first news of one may wait so long


def envoys(members: Iterable[Announcement]) -> frozenset[PeerId]:
    """Those of one region: of its members that hold the model, because a newcomer does not know the others yet."""
    holders = [a for a in members if a.ready]
    return frozenset(peer_of(a) for a in nsmallest(N_ENVOYS, holders, key=lambda a: _rank(a.region, a.peer_id)))


def far_grown(n_envoys: int) -> float:
    """How many times `announce_s` lies between two announcements of an envoy to the run, where it hears so many others."""
    if not n_envoys:
        return HEARS_OF_NOBODY
    return float(min(max(1.0, n_envoys / (2 * N_ENVOYS)) ** FAR_GROWTH, MAX_FAR_GROWN))


def sizes(announcements: Iterable[Announcement]) -> Mapping[str, int]:
    """How many members each region has: what its envoys say, and at least as many as are known."""
    said: dict[str, list[int]] = {}
    for a in announcements:
        if a.region:
            said.setdefault(a.region, []).append(a.region_size if a.envoy else 0)
    return {region: max(len(found), median_low([n for n in found if n] or [0])) for region, found in said.items()}


@lru_cache(maxsize=4096)
def _rank(region: str, peer: str) -> bytes:
    return hashlib.blake2b(f"legion/envoy/{region}/{peer}".encode(), digest_size=8).digest()
