"""AdamW on one flat tensor (Loshchilov and Hutter, 1711.05101), with the same bits on every machine.

Elementwise operations only, and none that multiplies and adds at once: whether such a one rounds once or twice depends on the
machine. So an owner and its standby, which take the same steps with the same gradients, hold the same bytes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Shape suffixes: N = elements, B = elements of a part.

PART = 1 << 16  # elements at a time: what is read and written again stays in the processor's cache
EPS = 1e-8


@dataclass(frozen=True)
class AdamWRates:
    """What one step goes by."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float


@dataclass(eq=False)
class Moments:
    """What AdamW remembers of one tensor."""

    first: Tensor
    second: Tensor
    n_steps: int = 0

    @classmethod
    def of(cls, weights: Tensor) -> "Moments":
        """Zeros, as before the first step."""
        return cls(torch.zeros_like(weights), torch.zeros_like(weights))


@torch.no_grad()
def adamw_step(weights_N: Tensor, gradient_N: Tensor, moments: Moments, rates: AdamWRates) -> None:
    """One step, in place: `weights_N`, `gradient_N` and the moments are 1-D fp32 on the CPU and equally long."""
    moments.n_steps += 1
    correction1 = 1 - rates.beta1**moments.n_steps
    correction2 = math.sqrt(1 - rates.beta2**moments.n_steps)
    kept = 1 - rates.lr * rates.weight_decay
    for start in range(0, len(weights_N), PART):
        part = slice(start, start + PART)
        weights_B, g_B, m_B, v_B = weights_N[part], gradient_N[part], moments.first[part], moments.second[part]
        m_B.mul_(rates.beta1).add_(g_B * (1 - rates.beta1))
        v_B.mul_(rates.beta2).add_((g_B * g_B).mul_(1 - rates.beta2))
        scale_B = v_B.sqrt().div_(correction2).add_(EPS)
        step_B = (m_B * (rates.lr / correction1)).div_(scale_B)
        weights_B.mul_(kept).sub_(step_B)
