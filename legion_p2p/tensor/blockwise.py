"""Eight bits per value and one scale per block: block-wise absmax quantization (Dettmers et al., 2110.02861, section 2.1; here
with evenly spaced levels).

An outlier spoils the resolution of its own block of 256, not of the whole tensor.

    body = K scales (fp32), then N values (int8);  K = ceil(N / 256);  value = int8 * scale of its block

The scale is fp32, not fp16: fp16 ends at 65504 and at 6e-8, so that one outlier of 1e30 becomes infinite and a block of small
gradients becomes zero. The two more bytes per block are 0.06 bit per value.
"""

# Shape suffixes: N = elements, K = blocks, B = elements per block (the last block may be shorter), M = elements in whole blocks.

from typing import Final

import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body

VERSION = 1
BLOCK = 256
LEVELS = 127

MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smaller scales are written as zero, and so is their block (all of it below 1.5e-36): what a subnormal number is worth depends
on the flush-to-zero mode of the machine that multiplies by it."""

MAX_SCALE = torch.finfo(torch.float32).max / 128
"""int8 times a larger scale could be infinite. Only values above 3.376e38 feel it: they saturate, by less than 1 %."""


class Int8:
    """Block-wise absmax int8. The error is at most half a step, that is 1/254 of the largest magnitude in the block."""

    name: Final = "int8"
    codec_id: Final = 4
    bits_per_element: Final = 8 + 32 / BLOCK

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32."""
        x_N = body.encodable(x)
        body.require_finite(x_N)
        n = x_N.numel()
        q_N = torch.empty(n, dtype=torch.int8, device=x_N.device)
        scales = [_quantize(rows, q_rows) for rows, q_rows in zip(_blocks(x_N), _blocks(q_N), strict=True)]
        scale_K = torch.cat(scales) if scales else x_N.new_empty(0)
        return body.pack(self.codec_id, VERSION, n, scale_K, q_N)

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        n_blocks = -(-numel // BLOCK)
        raw = body.unpack(data, self.codec_id, VERSION, numel, 4 * n_blocks + numel)
        scale_K = body.read(raw, "float32", n_blocks)
        # written so that NaN, which compares false to everything, is refused too
        allowed = (scale_K == 0) | ((scale_K >= MIN_SCALE) & (scale_K <= MAX_SCALE))
        if not bool(allowed.all()):
            raise CodecError(f"int8 body has a scale that is neither 0 nor in {MIN_SCALE:.4g} to {MAX_SCALE:.4g}")
        x_N = body.read(raw, "int8", numel, offset=4 * n_blocks).to(torch.float32)
        start = 0
        for rows in _blocks(x_N):
            rows.mul_(scale_K[start : start + len(rows), None])
            start += len(rows)
        return x_N


def _blocks(x_N: Tensor) -> list[Tensor]:
    """Views of `x_N` that cover it: the whole blocks (K, B), and what is left (1, N mod B). Either is missing if empty."""
    n_whole = x_N.numel() - x_N.numel() % BLOCK
    views = [x_N[:n_whole].view(-1, BLOCK), x_N[n_whole:].view(1, -1)]
    return [view for view in views if view.numel()]


def _quantize(x_KB: Tensor, q_KB: Tensor) -> Tensor:
    """Write the int8 values of `x_KB` into `q_KB`; their scales (K)."""
    # amax and amin: one abs() less to allocate, and 30 times as fast as aminmax along rows
    absmax_K1 = torch.maximum(x_KB.amax(dim=1, keepdim=True), -x_KB.amin(dim=1, keepdim=True))
    scale_K1 = (absmax_K1 / LEVELS).clamp_max(MAX_SCALE)
    scale_K1 = scale_K1.where(scale_K1 >= MIN_SCALE, 0.0)
    per_step_K1 = scale_K1.reciprocal().where(scale_K1 > 0, 0.0)
    steps_KB = (x_KB * per_step_K1).round_().clamp_(-LEVELS, LEVELS)
    q_KB.copy_(steps_KB)
    return scale_K1.flatten()


INT8: Final = Int8()
