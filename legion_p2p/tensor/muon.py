"""Muon on flat tensors, with the same bits on every machine: what `train.muon` does, for peers that compare digests.

Muon replaces a matrix's momentum by about the nearest orthogonal matrix (Jordan et al. 2024), by products of matrices, and a
library's product gives other bits on other processors, which add in another order. So both factors are rounded to whole multiples
of a power of two first, so few bits that fp64 holds every sum of their products without rounding: then the order does not matter.
With 1,024 rows and columns that leaves 21 bits of the largest element, where bf16, in which GPUs do the same, leaves 8 of each.
"""

# Shape suffixes: N = elements, R, C, K = rows and columns of matrices, R <= C.

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.tensor.adamw import AdamWRates, Moments, adamw_step
from legion_p2p.tensor.aggregate import norm

Floats = npt.NDArray[np.float64]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2
TINY = 1e-7
FP64_BITS = 53  # of a whole number that it holds without rounding


class FlatMatrix(Protocol):
    """A matrix in a flat tensor: see `core.sharding.matrices.Matrix`."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...


@torch.no_grad()
def muon_step(weights_N: Tensor, gradient_N: Tensor, moments: Moments, rates: AdamWRates, matrices: Sequence[FlatMatrix]) -> None:
    """One step, in place: Muon on `matrices`, which are in order, AdamW on what is between them.

    `weights_N`, `gradient_N` and the moments are 1-D fp32 on the CPU and equally long.
    """
    n_steps, at = moments.n_steps, 0
    for matrix in matrices:
        _adamw_between(weights_N, gradient_N, moments, rates, slice(at, matrix.start), n_steps)
        part = slice(matrix.start, matrix.end)
        _turn(weights_N[part], gradient_N[part], moments.first[part], rates, (matrix.rows, matrix.columns))
        at = matrix.end
    _adamw_between(weights_N, gradient_N, moments, rates, slice(at, len(weights_N)), n_steps)
    moments.n_steps = n_steps + 1


def _adamw_between(weights_N: Tensor, gradient_N: Tensor, moments: Moments, rates: AdamWRates, part: slice, n_steps: int) -> None:
    if part.start < part.stop:
        adamw_step(weights_N[part], gradient_N[part], Moments(moments.first[part], moments.second[part], n_steps), rates)


def _turn(weights_N: Tensor, gradient_N: Tensor, momentum_N: Tensor, rates: AdamWRates, shape: tuple[int, int]) -> None:
    momentum_N.mul_(MOMENTUM).add_(gradient_N * (1 - MOMENTUM))
    wanted_N = (gradient_N * (1 - MOMENTUM)).add_(momentum_N * MOMENTUM)
    step_N = orthogonal(wanted_N.view(shape)).view(-1)
    length = rates.lr * RMS_OF_ADAMW * math.sqrt(max(shape))
    weights_N.mul_(1 - rates.lr * rates.weight_decay).sub_(step_N.mul_(length))


def orthogonal(x_RC: Tensor) -> Tensor:
    """About U V' for x = U S V', by Newton-Schulz iteration: fp32, contiguous. A zero matrix stays zero."""
    a, b, c = COEFFICIENTS
    y_RC = x_RC.numpy().astype(np.float64)
    y_RC /= max(norm(x_RC.reshape(-1)), TINY)
    is_tall = y_RC.shape[0] > y_RC.shape[1]
    if is_tall:
        y_RC = np.ascontiguousarray(y_RC.T)
    for _ in range(ITERATIONS):
        gram_RR = exact_product(y_RC, y_RC.T)
        mixed_RR = exact_product(gram_RR, gram_RR)
        mixed_RR *= c
        mixed_RR += b * gram_RR
        next_RC = exact_product(mixed_RR, y_RC)
        next_RC += a * y_RC
        y_RC = next_RC
    out = np.ascontiguousarray(y_RC.T if is_tall else y_RC).astype(np.float32)
    return torch.from_numpy(out)


def exact_product(a_RK: Floats, b_KC: Floats) -> Floats:
    """The product of both factors, each rounded as the text above says: the same bits whatever the order of the sums."""
    bits = (FP64_BITS - (a_RK.shape[1] - 1).bit_length()) // 2
    whole_RK, down_a = _whole(a_RK, bits)
    whole_KC, down_b = _whole(b_KC, bits)
    # torch's, which keeps to the number of threads that this process was given
    product_RC: Floats = torch.mm(torch.from_numpy(whole_RK), torch.from_numpy(whole_KC)).numpy()
    return np.ldexp(product_RC, -down_a - down_b)


def _whole(x: Floats, bits: int) -> tuple[Floats, int]:
    """Whole numbers of at most this many bits, and by how many they were shifted up."""
    largest = float(np.abs(x).max(initial=0.0))
    up = bits - math.frexp(largest)[1] if largest > 0 else 0
    return np.rint(np.ldexp(x, up)), up
