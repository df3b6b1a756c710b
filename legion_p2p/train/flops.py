"""How well a device is used: the arithmetic that a model needs for its tokens, against what the device can do at most.

Model FLOPs utilisation (MFU) as in PaLM (Chowdhery et al., 2204.02311, appendix B): a matrix parameter takes 6 operations a token
(2 forward, 4 backward), attention 12 times layers, width and context. What activation checkpointing computes twice counts once.
"""

from typing import Literal

import msgspec
import torch
from torch import nn

PEAK_TFLOPS = (
    ("B200", 2250.0, 75.0),
    ("H200", 989.0, 67.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("L4", 121.0, 30.3),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
)
"""Dense bf16 with fp32 sums, and fp32, of cards whose name holds these words, by their data sheets. The first
that fits counts."""


class Utilisation(msgspec.Struct, frozen=True):
    """What relates speed to the device."""

    flops_per_token: int
    peak_flops: float | None
    """Operations a second; None: not known."""

    def mfu(self, tokens_per_s: float) -> float | None:
        """The share of what the device can do that goes into training; None where that is not known."""
        return round(tokens_per_s * self.flops_per_token / self.peak_flops, 5) if self.peak_flops else None


def flops_per_token(module: nn.Module, n_layer: int, width: int, context: int) -> int:
    """Operations to train on one token."""
    tables = [m.weight for m in module.modules() if isinstance(m, nn.Embedding)]
    looked_up = {id(table) for table in tables}
    matrices = [p for p in module.parameters() if p.ndim >= 2 and id(p) not in looked_up]
    n = sum(p.numel() for p in matrices)
    if tables and not any(p.shape == tables[0].shape for p in matrices):  # tied: the table is the output matrix as well
        n += tables[0].numel()
    return 6 * n + 12 * n_layer * width * context


def peak_flops(device: str, precision: Literal["fp32", "bf16"], given_tflops: float = 0.0) -> float | None:
    """Operations a second that the device can do: those that were given, or by its data sheet; None where nobody knows."""
    if given_tflops:
        return given_tflops * 1e12
    if not device.startswith("cuda"):
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(card: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """Operations a second of a card with this name."""
    for words, bf16, fp32 in PEAK_TFLOPS:
        if words in card:
            return 1e12 * (bf16 if precision == "bf16" else fp32)
    return None
