"""Pushes as points of which only the distances are known.

Every rule here that is not coordinate-wise ends in a weighted mean of the pushes, and finds the weights by distances alone: for n
pushes it needs n * n numbers, however long the pushes are. Means of points are points again, and their distances follow from
those of the points.

All sums are made in one order, by elementwise operations, so that the same distances give the same bits everywhere.
"""

# Shape suffixes: P = points, Q = new points, N = pushes.

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from legion_p2p.tensor.robust.geometry import Floats


@dataclass(frozen=True, eq=False)
class Points:
    """Points, and the origin as the last one. The origin has no weight."""

    weight_P: Floats
    mix_PN: Floats
    """What each point is made of: the factor on each push."""
    apart_PP: Floats
    """Squared distances."""

    @property
    def n(self) -> int:
        """How many there are beside the origin."""
        return len(self.weight_P) - 1

    def shares(self) -> Floats:
        """The weights as shares of 1."""
        return shares(self.weight_P)

    def mixed(self, share_QP: Floats, weight_Q: Floats) -> "Points":
        """New points: one for each row of shares, which add up to 1. The last row is the origin's."""
        cross_QQ = product(product(share_QP, self.apart_PP), share_QP.T)
        own_Q = np.diagonal(cross_QQ)
        apart_QQ = np.maximum(cross_QQ - 0.5 * own_Q[:, None] - 0.5 * own_Q[None, :], 0.0)
        np.fill_diagonal(apart_QQ, 0.0)
        return Points(weight_Q, product(share_QP, self.mix_PN), apart_QQ)

    def distances(self, share_P: Floats) -> Floats:
        """Of each point to the mean with these shares, which add up to 1."""
        return np.array(self.distances_of(share_P.tolist()))

    @cached_property
    def _rows(self) -> list[list[float]]:
        rows: list[list[float]] = self.apart_PP.tolist()
        return rows

    def distances_of(self, share_P: list[float]) -> list[float]:
        """The same in plain numbers: for as few points as there are, arrays take longer to handle than to compute."""
        to_P = [dot(row, share_P) for row in self._rows]
        within = dot(share_P, to_P)
        return [math.sqrt(max(to - 0.5 * within, 0.0)) for to in to_P]

    def factors(self, share_P: Floats) -> Floats:
        """The factor on each push that makes the mean with these shares."""
        factor_N: Floats = product(share_P[None, :], self.mix_PN)[0]
        return factor_N


def product(a_IJ: Floats, b_JK: Floats) -> Floats:
    """The matrix product, added up in the order of J."""
    out_IK = np.zeros((a_IJ.shape[0], b_JK.shape[1]))
    for j in range(a_IJ.shape[1]):
        out_IK += a_IJ[:, j : j + 1] * b_JK[j : j + 1, :]
    return out_IK


def dot(a_J: list[float], b_J: list[float]) -> float:
    """The sum of the products, in order."""
    out = 0.0
    for a, b in zip(a_J, b_J, strict=True):
        out += a * b
    return out


def total(x_P: list[float]) -> float:
    """The sum, in order."""
    out = 0.0
    for x in x_P:
        out += x
    return out


def shares(weight_P: Floats) -> Floats:
    share_P: Floats = weight_P / total(weight_P.tolist())
    return share_P


def lower_median(x_P: Floats) -> float:
    """Of an even number the lower of the middle two."""
    return float(np.sort(x_P)[(len(x_P) - 1) // 2])
