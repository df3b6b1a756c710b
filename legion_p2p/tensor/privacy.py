"""The Gaussian mechanism on one change: shortened to a length, with noise on each element (Dwork and Roth 2014, appendix A)."""

import secrets
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class WithNoise(NamedTuple):
    """What `released` gives."""

    value: Tensor
    """1-D fp32."""
    clipped: bool


def secret_generator() -> np.random.Generator:
    """Noise that nobody can compute again: seeded with 256 bits of the operating system's randomness."""
    return np.random.Generator(np.random.Philox(secrets.randbits(256)))


def released(change: Tensor, longest: float, deviation: float, generator: np.random.Generator) -> WithNoise:
    """`change`, 1-D, shortened to at most `longest`, with Gaussian noise of `deviation` on each element.

    What is not finite is released as zeros with noise. Noise is drawn in fp64 and rounded together with the sum.
    """
    wide = change.detach().to("cpu", torch.float64)
    length = float(wide.norm())
    clipped = not length <= longest  # NaN as well
    if not np.isfinite(length):
        wide = torch.zeros_like(wide)
    elif clipped:
        wide = wide * (longest / length)
    noise = torch.from_numpy(generator.standard_normal(wide.numel()))
    return WithNoise(wide.add_(noise, alpha=deviation).float(), clipped)
