"""Policies that turn capacities into ownership. Each is a pure function of the announced weights: all arrive at the same answer.

| policy | who owns a shard | for |
|---|---|---|
| rendezvous | the strongest claim by weighted rendezvous hashing | the default: moves least, and each shard is decided alone |
| priority | the same, by the cubes of the weights: the strongest own nearly everything | few servers and many notebooks |
| stable | a stable matching of shards and peers with room (Gale, Shapley 1962) | few shards: nobody far above its share |

Weights must not flicker: each change of one moves shards. So each peer smooths its own before announcing it: `SmoothedWeight`.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from operator import truediv
from typing import Literal

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.pace import Ewma
from legion_p2p.core.rendezvous import Ownership, Salts, log_hashes
from legion_p2p.errors import UsageError

PlacementName = Literal["rendezvous", "priority", "stable"]
Policy = Callable[[str, str, int, Mapping[PeerId, float], Salts], tuple[Ownership, ...]]
"""(run id, region, number of shards, weights of the region's members, salts of the shards) -> who owns each shard."""

HEADROOM = 1.25  # what a peer may own, of its fair share by weight; less room means longer searches and more moves
PRIORITY = 3.0  # exponent of the weights: one to ten leaves a thousandth
MAX_REGIONS = 64  # whose owners are remembered
_NOBODY: Mapping[PeerId, float] = {}
_Weights = tuple[dict[PeerId, float], dict[PeerId, float], Salts]


class Placement:
    """Who owns what in one run, by the policy of its specification; remembered until a weight changes."""

    def __init__(self, run_id: str, n_shards: int, name: PlacementName) -> None:
        """Raises: UsageError, where no policy has this name."""
        self._policy = policy(name)
        self._run = run_id
        self._n_shards = n_shards
        self._known: BoundedMap[str, tuple[_Weights, tuple[Ownership, ...]]] = BoundedMap(MAX_REGIONS)

    def owners(
        self, region: str, weights: Mapping[PeerId, float], reserve: Mapping[PeerId, float] = _NOBODY, salts: Salts = ()
    ) -> tuple[Ownership, ...]:
        """Owner and standby of each shard among the members of one region. Where there is one owner for all, one of the `reserve`
        stands by."""
        known = self._known.get(region)
        if known is None or known[0] != (weights, reserve, salts):
            placed = self._policy(self._run, region, self._n_shards, weights, salts)
            if reserve:
                behind = self._policy(self._run, region, self._n_shards, reserve, salts)
                placed = tuple(Ownership(p.owner, p.standby or b.owner) for p, b in zip(placed, behind, strict=True))
            known = self._known[region] = (dict(weights), dict(reserve), salts), placed
        self._known.touch(region)
        return known[1]


def by_rendezvous(
    run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float], salts: Salts = ()
) -> tuple[Ownership, ...]:
    """The peer with the strongest claim owns, the next one stands by."""
    peers, claims = _claims(run_id, region, n_shards, weights, salts)
    return tuple(_first_two(peers, claim) for claim in claims)


def by_priority(
    run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float], salts: Salts = ()
) -> tuple[Ownership, ...]:
    """As by rendezvous, with weights to the power of PRIORITY: a peer that is ten times as strong owns a thousand times as much.

    There is no line between peers that may own and the rest, because crossing it would move many shards.
    """
    heaviest = max(weights.values(), default=0.0)
    stretched = {peer: (weight / heaviest) ** PRIORITY for peer, weight in weights.items() if weight > 0}
    return by_rendezvous(run_id, region, n_shards, stretched, salts)


def by_stable_matching(
    run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float], salts: Salts = ()
) -> tuple[Ownership, ...]:
    """Shards propose to peers in the order of their claims; a peer keeps its strongest up to `capacity`.

    The result is stable: no shard and peer both prefer each other to what they have. The standby is next in the shard's order.
    """
    capacity = capacities(n_shards, weights)
    if not capacity:
        return (Ownership(None, None),) * n_shards
    peers, claims = _claims(run_id, region, n_shards, weights, salts)
    claims = list(claims)
    wishes = [sorted(range(len(peers)), key=claim.__getitem__, reverse=True) for claim in claims]
    held: list[list[tuple[float, int]]] = [[] for _ in peers]
    n_asked = [0] * n_shards
    free = list(range(n_shards))
    while free:
        shard = free.pop()
        peer = wishes[shard][n_asked[shard]]
        n_asked[shard] += 1
        heapq.heappush(held[peer], (claims[shard][peer], shard))
        if len(held[peer]) > capacity[peers[peer]]:
            free.append(heapq.heappop(held[peer])[1])
    owner = {shard: peer for peer, shards in enumerate(held) for _, shard in shards}
    standby = [next((peer for peer in wishes[shard] if peer != owner[shard]), None) for shard in range(n_shards)]
    return tuple(
        Ownership(peers[owner[shard]], None if second is None else peers[second]) for shard, second in enumerate(standby)
    )


def capacities(n_shards: int, weights: Mapping[PeerId, float]) -> dict[PeerId, int]:
    """How many shards each peer of positive weight may own: HEADROOM times its share, rounded up."""
    total = math.fsum(weight for weight in weights.values() if weight > 0)
    return {peer: math.ceil(HEADROOM * n_shards * weight / total) for peer, weight in weights.items() if weight > 0}


POLICIES: dict[str, Policy] = {"rendezvous": by_rendezvous, "priority": by_priority, "stable": by_stable_matching}


def policy(name: str) -> Policy:
    """The policy of that name. Raises: UsageError, naming all of them."""
    if name not in POLICIES:
        raise UsageError(f"placement {name!r}: allowed are {', '.join(POLICIES)}")
    return POLICIES[name]


UNIT_BPS = 10e6
MIN_WEIGHT, MAX_WEIGHT = 0.1, 10.0  # what a connection that is measured wrongly, or lies, may be off by


def weight_of(upload_bps: float) -> float:
    """The weight of a peer whose upload carries this much: an owner sends every update to all members. 10 Mbit/s weigh 1."""
    return min(max(upload_bps / UNIT_BPS, MIN_WEIGHT), MAX_WEIGHT)


class SmoothedWeight:
    """The weight that a peer announces: what it measures of its own throughput, smoothed, and in steps.

    It stays as it is until the smoothed throughput is off by more than `step`: a peer whose throughput wavers moves no shards.
    """

    def __init__(self, gain: float = 0.2, step: float = 1.5) -> None:
        """`gain`: what the newest measurement counts. `step`: the factor below which a change is not announced."""
        self._ewma = Ewma(gain)
        self._step = step
        self.value = 0.0
        """0 before anything was measured."""

    def add(self, throughput: float) -> float:
        """A measurement of 0 or more, in any unit that all peers share; the weight to announce now."""
        smoothed = self._ewma.add(throughput)
        if not self.value / self._step <= smoothed <= self.value * self._step:
            self.value = smoothed
        return self.value


def _claims(
    run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float], salts: Salts
) -> tuple[list[PeerId], Iterable[list[float]]]:
    """The peers of positive weight, and for each shard how strongly each claims it; of equal claims the first wins."""
    peers = sorted((peer for peer, weight in weights.items() if weight > 0), reverse=True)
    negative = [-weights[peer] for peer in peers]
    if not peers:
        return [], ([] for _ in range(n_shards))
    rows = zip(*(log_hashes(run_id, region, n_shards, peer, salts) for peer in peers), strict=True)
    return peers, (list(map(truediv, negative, row)) for row in rows)


def _first_two(peers: list[PeerId], claim: list[float]) -> Ownership:
    if not peers:
        return Ownership(None, None)
    first = claim.index(max(claim))
    if len(peers) == 1:
        return Ownership(peers[0], None)
    claim[first] = -math.inf
    return Ownership(peers[first], peers[claim.index(max(claim))])
