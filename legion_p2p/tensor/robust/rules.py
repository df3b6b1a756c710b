"""How the pushes of a round become one change: the rules that a run's specification may name.

| rule | what it does | sparse pushes |
|---|---|---|
| mean | the mean by tokens, exactly: every member is trusted | yes |
| norm-cap | the mean, in which no push is longer than `norm_cap` times the median | yes |
| trimmed-mean | per coordinate, the mean without the smallest and largest values | no |
| median | per coordinate | no |
| krum | the one push nearest to its neighbours | yes |
| multi-krum | the mean without the pushes furthest from their neighbours | yes |
| bulyan | pushes chosen by Krum, and per coordinate the mean around the median | no |
| geometric-median | the point with the least sum of distances to all pushes | yes |
| centered-clip | means of pairs, clipped around a center | yes |
| nearest-neighbours | near-duplicates share a weight, pushes are mixed with their nearest; then the geometric median | yes |

With a standing for each member, rules that go by distances leave out members that go against the others round after round
(standing.py).

All but `mean` look at the changes of one step (`aggregate.equal_factors`), and cap their norms first. The same contributions give
the same bits, in whatever order they came and on whatever machine.
"""

# Shape suffixes: P = points, N = elements of a shard.

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legion_p2p.errors import UsageError
from legion_p2p.tensor.aggregate import (
    Aggregated,
    WeightedPush,
    common_numel,
    equal_factors,
    norm,
    usable_in_order,
    weighted_mean,
)
from legion_p2p.tensor.encoded import Value, whole
from legion_p2p.tensor.mean_length import Term, given_back
from legion_p2p.tensor.robust import centers, coordinatewise, selection
from legion_p2p.tensor.robust.geometry import CHUNK, Floats, Group, chunk_of, combination, squared_distances
from legion_p2p.tensor.robust.points import Points
from legion_p2p.tensor.robust.standing import alignments, next_standings, weight_of

MAX_COMPARED = 256  # points whose distances are computed: 1 GFLOP for each 10,000 elements. More pushes are averaged in groups.

ByDistance = Callable[[Points, int], Floats]
ByCoordinate = Callable[[Tensor, Sequence[float], int], Tensor]

BY_DISTANCE: dict[str, ByDistance] = {
    "krum": selection.krum,
    "multi-krum": selection.multi_krum,
    "geometric-median": centers.geometric_median,
    "centered-clip": centers.centered_clip,
    "nearest-neighbours": centers.nearest_neighbour_median,
}
BY_COORDINATE: dict[str, ByCoordinate] = {
    "median": coordinatewise.median,
    "trimmed-mean": coordinatewise.trimmed_mean,
    "bulyan": coordinatewise.mean_around_median,
}
NEEDS = {"krum": (2, 3), "multi-krum": (2, 3), "bulyan": (4, 3)}
"""(a, b): a rule for f hostile pushes takes a * f + b in all. The others take 2 * f + 1."""


@dataclass(frozen=True)
class Rule:
    """A rule with its settings: see the fields of `core.round_spec.RoundSpec`."""

    name: str
    norm_cap: float | None = 1.0
    hostile_share: float = 0.2


def names() -> tuple[str, ...]:
    return "mean", "norm-cap", *BY_DISTANCE, *BY_COORDINATE


def aggregate(contributions: Sequence[WeightedPush], rule: Rule, numel: int | None = None, *, restore: float = 0.0) -> Aggregated:
    """What the contributions come to. Those that a rule leaves out are in `used` as well: they were taken into account.

    `restore`: the part of the length that is given back, see `tensor.mean_length`; 0 measures nothing. `numel` is only needed
    where there may be no contribution at all.

    Raises: UsageError, if there is no such rule, values differ in length or are not 1-D fp32, or `norm_cap` is not positive.
    """
    if rule.name not in names():
        raise UsageError(f"aggregation {rule.name!r}: allowed are {', '.join(names())}")
    if rule.name in ("mean", "norm-cap"):
        return weighted_mean(contributions, None if rule.name == "mean" else rule.norm_cap, numel, restore=restore)
    numel = common_numel(contributions, numel)
    used, refused = usable_in_order(contributions)
    if not used:
        return Aggregated(torch.zeros(numel, dtype=torch.float32, device="cpu"), (), refused)
    values = [c.value for c in used]
    factors, mean_steps = equal_factors(used, rule.norm_cap)
    groups = _groups(used, factors)
    hostile = n_hostile(rule, len(groups))
    standings: tuple[int, ...] = ()
    if rule.name in BY_DISTANCE and len(groups) == len(used) and all(c.standing is not None for c in used):
        points = _points(values, groups)
        share_P = _screened(points, [c.standing or 0 for c in used], rule)
        standings = next_standings([c.standing or 0 for c in used], alignments(points.apart_PP, share_P))
        shares = _factors_of_pushes(groups, share_P, len(values))
        result = combination(values, shares)
        shares = [share / factor for share, factor in zip(shares, factors, strict=True)]
    elif rule.name in BY_DISTANCE:
        factor_P = BY_DISTANCE[rule.name](_points(values, groups), hostile).tolist()
        shares = _factors_of_pushes(groups, factor_P, len(values))
        result = combination(values, shares)
        shares = [share / factor for share, factor in zip(shares, factors, strict=True)]
    else:
        shares = [c.weight for c in used]
        if rule.name == "bulyan":
            groups = [groups[i] for i in selection.chosen_by_bulyan(_points(values, groups), hostile)]
        result = _by_coordinate(values, groups, BY_COORDINATE[rule.name], hostile)
    agreement = None
    if restore > 0:
        terms = [Term(value, share, factor) for value, share, factor in zip(values, shares, factors, strict=True)]
        result, agreement = given_back(result, terms, restore)
    result = result if mean_steps == 1.0 else result * mean_steps
    return Aggregated(result, tuple(c.source for c in used), refused, agreement, standings)


def _screened(points: Points, standings: Sequence[int], rule: Rule) -> list[float]:
    """The factor on each point, by the rule, among those whose standing gives them a weight; if none has one, among all."""
    weights = [weight_of(standing) for standing in standings]
    if not any(weights):
        weights = [1.0] * len(weights)
    kept = [i for i, weight in enumerate(weights) if weight > 0]
    weight_P = np.array([*(points.weight_P[i] * weights[i] for i in kept), 0.0])
    with_origin = [*kept, points.n]
    chosen = Points(weight_P, np.eye(len(kept) + 1, len(kept)), points.apart_PP[np.ix_(with_origin, with_origin)])
    factors = [0.0] * points.n
    for i, factor in zip(kept, BY_DISTANCE[rule.name](chosen, n_hostile(rule, len(kept))).tolist(), strict=True):
        factors[i] = factor
    return factors


def n_hostile(rule: Rule, n: int) -> int:
    """How many of n pushes the rule takes for hostile."""
    per_hostile, more = NEEDS.get(rule.name, (2, 1))
    wanted = math.floor(rule.hostile_share * n + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return max(0, min(wanted, (n - more) // per_hostile))


def _groups(used: Sequence[WeightedPush], factors: Sequence[float]) -> list[Group]:
    """Each push alone; or, where they are too many to compare, random groups of pushes, which no member could foresee."""
    heaviest = max(c.weight for c in used)
    weights = [c.weight / heaviest for c in used]
    order = list(range(len(used)))
    if len(used) > MAX_COMPARED:
        norms = [norm(whole(c.value)) for c in used]
        seed = hashlib.sha256(struct.pack(f"<{len(norms)}d", *norms)).digest()
        order.sort(key=lambda i: hashlib.sha256(seed + i.to_bytes(4, "big")).digest())
    size = -(-len(used) // MAX_COMPARED)
    groups = []
    for start in range(0, len(order), size):
        members = tuple(sorted(order[start : start + size]))
        weight = math.fsum(weights[i] for i in members)
        groups.append(Group(members, tuple(factors[i] * (weights[i] / weight) for i in members), weight))
    return groups


def _points(values: Sequence[Value], groups: Sequence[Group]) -> Points:
    weight_P = np.array([*(group.weight for group in groups), 0.0])
    mix_PP = np.eye(len(groups) + 1, len(groups))
    return Points(weight_P, mix_PP, squared_distances(values, groups))


def _factors_of_pushes(groups: Sequence[Group], factor_P: Sequence[float], n_pushes: int) -> list[float]:
    out = [0.0] * n_pushes
    for group, factor in zip(groups, factor_P, strict=True):
        for i, own in zip(group.members, group.factors, strict=True):
            out[i] = factor * own
    return out


def _by_coordinate(values: Sequence[Value], groups: Sequence[Group], rule: ByCoordinate, hostile: int) -> Tensor:
    out_N = torch.empty(values[0].numel(), dtype=torch.float32, device="cpu")
    weight_P = [group.weight for group in groups]
    for start in range(0, len(out_N), CHUNK):
        out_N[start : start + CHUNK] = rule(chunk_of(values, groups, start), weight_P, hostile).to(torch.float32)
    return out_N
