"""Rules that look at each coordinate alone. Useless for sparse pushes, where most coordinates are zero at most members.

Points come in a fixed order, and sorting is stable: the same points give the same bits.
"""

# Shape suffixes: C = elements of a chunk, P = points.

from collections.abc import Sequence

import torch
from torch import Tensor


def median(x_PC: Tensor, weight_P: Sequence[float], hostile: int) -> Tensor:
    """Of an even number the middle between the two. Each point counts once, whatever its weight."""
    return _middle(x_PC.sort(dim=0, stable=True).values)


def trimmed_mean(x_PC: Tensor, weight_P: Sequence[float], hostile: int) -> Tensor:
    """The weighted mean without the `hostile` smallest and the `hostile` largest values."""
    sorted_PC, order_PC = x_PC.sort(dim=0, stable=True)
    weights = torch.tensor(weight_P, dtype=torch.float64, device="cpu")
    top_C, bottom_C = torch.zeros_like(x_PC[0]), torch.zeros_like(x_PC[0])
    for p in range(hostile, len(x_PC) - hostile):
        weight_C = weights[order_PC[p]]
        top_C.add_(sorted_PC[p] * weight_C)
        bottom_C.add_(weight_C)
    return top_C / bottom_C


def mean_around_median(x_PC: Tensor, weight_P: Sequence[float], hostile: int) -> Tensor:
    """The mean of all but the 2 * `hostile` values that are furthest from the median: the second half of Bulyan."""
    sorted_PC = x_PC.sort(dim=0, stable=True).values
    order_PC = (sorted_PC - _middle(sorted_PC)).abs().sort(dim=0, stable=True).indices
    n_kept = len(x_PC) - 2 * hostile
    sum_C = torch.zeros_like(x_PC[0])
    for p in range(n_kept):
        sum_C.add_(sorted_PC.gather(0, order_PC[p : p + 1])[0])
    return sum_C / n_kept


def _middle(sorted_PC: Tensor) -> Tensor:
    n = len(sorted_PC)
    return (sorted_PC[(n - 1) // 2] + sorted_PC[n // 2]) / 2
