"""Policies that turn capacities into ownership. Each is a pure function of the announced weights: all arrive at the same answer.

| policy | who owns a shard | for |
|---|---|---|
| rendezvous | the strongest claim by weighted rendezvous hashing | the default: moves least, and each shard is decided alone |
| priority | the same, among the strongest peers that together have half of all weight | few servers and many notebooks |
| stable | a stable matching of shards and peers with room (Gale, Shapley 1962) | few shards: nobody far above its share |

Weights must not flicker: each change of one moves shards. So each peer smooths its own before announcing it: `SmoothedWeight`.
"""

import heapq
import math
from collections.abc import Callable, Mapping

from legion_p2p.core.identity import PeerId
from legion_p2p.core.pace import Ewma
from legion_p2p.core.rendezvous import Ownership, ranking, score, shard_key
from legion_p2p.errors import UsageError

Policy = Callable[[str, str, int, Mapping[PeerId, float]], tuple[Ownership, ...]]
"""(run id, region, number of shards, weights of the region's members) -> who owns each shard."""

HEADROOM = 1.25  # what a peer may own, of its fair share by weight; less room means longer searches and more moves
PRIORITY_SHARE = 0.5  # of all weight that the peers of priority have together
MIN_PRIORITY = 2  # an owner and a standby


def by_rendezvous(run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float]) -> tuple[Ownership, ...]:
    """The peer with the strongest claim owns, the next one stands by."""
    return tuple(_first_two(ranking(shard_key(run_id, region, shard), weights)) for shard in range(n_shards))


def by_priority(run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float]) -> tuple[Ownership, ...]:
    """Only the heaviest peers own: as few as have PRIORITY_SHARE of all weight."""
    total = math.fsum(weight for weight in weights.values() if weight > 0)
    chosen: dict[PeerId, float] = {}
    for peer, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        if weight <= 0 or (len(chosen) >= MIN_PRIORITY and math.fsum(chosen.values()) >= PRIORITY_SHARE * total):
            break
        chosen[peer] = weight
    return by_rendezvous(run_id, region, n_shards, chosen)


def by_stable_matching(run_id: str, region: str, n_shards: int, weights: Mapping[PeerId, float]) -> tuple[Ownership, ...]:
    """Shards propose to peers in the order of their claims; a peer keeps its strongest up to `capacity`.

    The result is stable: no shard and peer both prefer each other to what they have. The standby is next in the shard's order.
    """
    capacity = capacities(n_shards, weights)
    keys = [shard_key(run_id, region, shard) for shard in range(n_shards)]
    wishes = [ranking(key, weights) for key in keys]
    if not capacity:
        return (Ownership(None, None),) * n_shards
    held: dict[PeerId, list[tuple[float, int]]] = {peer: [] for peer in capacity}
    n_asked = [0] * n_shards
    free = list(range(n_shards))
    while free:
        shard = free.pop()
        peer = wishes[shard][n_asked[shard]]
        n_asked[shard] += 1
        heapq.heappush(held[peer], (score(keys[shard], peer, weights[peer]), shard))
        if len(held[peer]) > capacity[peer]:
            free.append(heapq.heappop(held[peer])[1])
    owner = {shard: peer for peer, shards in held.items() for _, shard in shards}
    return tuple(
        Ownership(owner[shard], next((peer for peer in wishes[shard] if peer != owner[shard]), None)) for shard in range(n_shards)
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


def _first_two(ranked: list[PeerId]) -> Ownership:
    return Ownership(ranked[0] if ranked else None, ranked[1] if len(ranked) > 1 else None)
