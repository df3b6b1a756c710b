"""How far the pushes of a round agree, and the length that their mean loses where they do not.

Optimizers that normalize what they step by (Adam, Muon, Adafactor, sign) make steps of one length, however noisy their gradients.
So does one process with the batches of all: it averages first, and normalizes then. The mean of such steps of k peers is shorter,
down to 1/sqrt(k) where they are orthogonal, although it points the same way. How much is lost differs from one part of a model
to the other, so it is measured in blocks:

    given back to a block = sqrt(all / max(|mean|^2, own))
    agreement of a round  = (|mean|^2 - own) / (all - own)       with the sums over all blocks

where `all` is what |mean|^2 would be if the pushes were equal, and `own` if they were orthogonal. A block is never made shorter,
and never longer than the pushes are in the square mean. Decoupled DiLoCo (2604.21428) gives its merged change the pushes' length,
too. Everything is added by halves, elementwise: the same bits on every machine.
"""

# Shape suffixes: N = elements, C = elements of a chunk, B = blocks, E = elements of a block.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.tensor.encoded import Value

BLOCK = 64  # elements: the agreement of two random pushes is then 0 to within an eighth
CHUNK = 1 << 15  # elements at a time: what is read and written again stays in the processor's cache; a multiple of BLOCK
TINY = 1e-300  # of a square: below, nothing has moved

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """A push in a mean: `share` of all, of its value times `factor`."""

    value: Value
    share: float
    factor: float


def given_back(mean_N: Tensor, terms: Sequence[Term], part: float) -> tuple[Tensor, float | None]:
    """`mean_N` with this part, 0 to 1, of the length that it lost; and the agreement of `terms`, whose mean it is.

    The agreement is None where there is nothing to compare: of one push, or where nothing has moved.
    """
    whole = sum(term.share for term in terms)
    if sum(term.share > 0 for term in terms) < 2 or not whole > 0:
        return mean_N, None
    out_N = torch.empty_like(mean_N)
    squares, owns, everything = 0.0, 0.0, 0.0
    for start in range(0, len(mean_N), CHUNK):
        mean_C = mean_N[start : start + CHUNK]
        square_B = squares_of(mean_C, 1.0)
        all_B, own_B = np.zeros_like(square_B), np.zeros_like(square_B)
        for term in terms:
            share = term.share / whole
            if share > 0:
                length_B = squares_of(term.value[start : start + CHUNK], term.factor)
                all_B += share * length_B
                own_B += share * share * length_B
        lost_B = np.sqrt(np.maximum(all_B / np.maximum(np.maximum(square_B, own_B), TINY), 1.0))
        longer_B = 1.0 + part * (lost_B - 1.0)
        stretched_C = np.repeat(longer_B, BLOCK)[: len(mean_C)] * mean_C.numpy()
        out_N[start : start + CHUNK] = torch.from_numpy(stretched_C)
        squares, owns, everything = squares + _total(square_B), owns + _total(own_B), everything + _total(all_B)
    if not everything > owns:
        return mean_N, None
    return out_N, min(1.0, max(0.0, (squares - owns) / (everything - owns)))


def squares_of(x_C: Tensor, factor: float) -> Floats:
    """Of each block the sum of the squares of `factor` times its elements."""
    n_blocks = -(-len(x_C) // BLOCK)
    flat = x_C.detach().numpy()
    if len(flat) < n_blocks * BLOCK:
        flat = np.append(flat, np.zeros(n_blocks * BLOCK - len(flat), flat.dtype))
    x_EB: Floats = np.empty((BLOCK, n_blocks))  # elements first: then halves lie in a row each, and are added twice as quickly
    x_EB[:] = flat.reshape(n_blocks, BLOCK).T
    x_EB *= factor
    np.square(x_EB, out=x_EB)
    width = BLOCK
    while width > 1:
        width //= 2
        x_EB[:width] += x_EB[width : 2 * width]
    square_B: Floats = x_EB[0].copy()
    return square_B


def _total(x_B: Floats) -> float:
    """The sum, in order."""
    total = 0.0
    for x in x_B.tolist():
        total += x
    return total
