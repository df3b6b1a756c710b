"""Rules that leave the strangest pushes out: Krum and Multi-Krum, and the first half of Bulyan.

Each member counts once in the choice, whatever its weight.
"""

import math

import numpy as np

from legion_p2p.tensor.robust.geometry import Floats
from legion_p2p.tensor.robust.points import Points, shares


def krum(points: Points, hostile: int) -> Floats:
    """The one push that is nearest to its neighbours (Blanchard et al. 2017)."""
    return _mean_of(points, ranked(points.apart_PP[:-1, :-1], hostile)[:1])


def multi_krum(points: Points, hostile: int) -> Floats:
    """The weighted mean of all but the `hostile` pushes that are furthest from their neighbours."""
    return _mean_of(points, ranked(points.apart_PP[:-1, :-1], hostile)[: points.n - hostile])


def ranked(apart_PP: Floats, hostile: int) -> list[int]:
    """All points, the one nearest to its n - hostile - 2 nearest neighbours first. Of equals the first."""
    n = len(apart_PP)
    n_near = max(1, n - hostile - 2)
    nearest = np.sort(apart_PP, axis=1)[:, 1 : 1 + n_near]  # without the point itself, which is at 0
    scores = [math.fsum(row) for row in nearest.tolist()]
    return sorted(range(n), key=scores.__getitem__)


def chosen_by_bulyan(points: Points, hostile: int) -> list[int]:
    """n - 2 * hostile points, each the best by Krum of those that are left (El Mhamdi, Guerraoui and Rouault 2018)."""
    left = list(range(points.n))
    chosen: list[int] = []
    while len(chosen) < points.n - 2 * hostile:
        best = left[ranked(points.apart_PP[np.ix_(left, left)], hostile)[0]] if len(left) > 1 else left[0]
        chosen.append(best)
        left.remove(best)
    return sorted(chosen)


def _mean_of(points: Points, chosen: list[int]) -> Floats:
    weight_P = np.zeros(points.n + 1)
    weight_P[chosen] = points.weight_P[chosen]
    return points.factors(shares(weight_P))
