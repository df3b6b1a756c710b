"""How far apart pushes are, to the same bit on every machine.

Distances need a matrix product, and the library's gives other bits on other processors, which add in another order. Sums of
integers do not depend on the order: so each value is rounded to a multiple of 2**-18 of the largest one, and the product of these
integers, summed in pieces that fp64 holds without rounding, is exact. A distance is then wrong by about a millionth, and equal
everywhere.
"""

# Shape suffixes: N = elements of a shard, C = elements of a chunk, P = points.

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.tensor.encoded import Value, whole

Floats = npt.NDArray[np.float64]

BITS = 18  # of a value: the product of two has 36, and 2**17 of these add up to 53, which fp64 holds
CHUNK = 1 << 14  # elements of all points that are in memory as fp64 at once; at most 2**17


@dataclass(frozen=True, eq=False)
class Group:
    """One point: a push times its factor, or the sum of several."""

    members: tuple[int, ...]
    """Indices of the pushes."""
    factors: tuple[float, ...]
    """At least 0."""
    weight: float
    """Of this point beside the others."""


def squared_distances(values: Sequence[Value], groups: Sequence[Group]) -> Floats:
    """Between the points and, in the last row and column, to the origin: (P + 1, P + 1).

    `values` are 1-D fp32 on the CPU, finite, and of one length.
    """
    n_points, numel = len(groups), values[0].numel() if values else 0
    apart_PP: Floats = np.zeros((n_points + 1, n_points + 1))
    highest_N = [_highest(whole(value)) for value in values]
    largest = max((sum(highest_N[i] * f for i, f in zip(g.members, g.factors, strict=True)) for g in groups), default=0.0)
    if not largest > 0:
        return apart_PP
    bits = min(BITS, (60 - numel.bit_length()) // 2)  # the sum of all squares has to fit into an int64
    exponent = bits - math.frexp(largest)[1]
    gram_PP = np.zeros((n_points, n_points), np.int64)
    for start in range(0, numel, CHUNK):
        whole_PC = chunk_of(values, groups, start).mul_(math.ldexp(1.0, exponent)).round_().numpy()
        gram_PP += (whole_PC @ whole_PC.T).astype(np.int64)
    own_P = gram_PP.diagonal()
    steps_PP = np.zeros((n_points + 1, n_points + 1), np.int64)
    steps_PP[:-1, :-1] = own_P[:, None] + own_P[None, :] - 2 * gram_PP
    steps_PP[:-1, -1] = steps_PP[-1, :-1] = own_P
    return np.ldexp(steps_PP.astype(np.float64), -2 * exponent)


def chunk_of(values: Sequence[Value], groups: Sequence[Group], start: int) -> Tensor:
    """Of each point the elements from `start` on, at most CHUNK of them: (P, C) fp64."""
    length = min(CHUNK, values[0].numel() - start)
    out_PC: Floats = np.zeros((len(groups), length))
    part_C = np.empty(length)
    for out_C, group in zip(out_PC, groups, strict=True):
        for i, factor in zip(group.members, group.factors, strict=True):
            np.copyto(part_C, values[i][start : start + length].detach().numpy())
            part_C *= factor
            out_C += part_C
    return torch.from_numpy(out_PC)


def combination(values: Sequence[Value], factors: Sequence[float]) -> Tensor:
    """The sum of `values` times `factors`, fp32: added in this order in fp64, by elementwise operations only."""
    whole = (Group(tuple(range(len(values))), tuple(factors), 1.0),)
    out_N = torch.empty(values[0].numel(), dtype=torch.float32, device="cpu")
    for start in range(0, len(out_N), CHUNK):
        out_N[start : start + CHUNK] = chunk_of(values, whole, start)[0].to(torch.float32)
    return out_N


def _highest(x_N: Tensor) -> float:
    """The largest magnitude."""
    if not x_N.numel():
        return 0.0
    low, high = torch.aminmax(x_N)
    return max(-float(low), float(high))
