"""A few bits per value in even steps, and one scale per block: block-wise absmax quantization (Dettmers et al., 2110.02861,
section 2.1; here with evenly spaced levels).

An outlier spoils the resolution of its own block of 256, not of the whole tensor.

    body = K scales (fp32), then N values;  K = ceil(N / 256);  value = step * scale of its block
    steps are -L to L, with L = 127, 7, 3, 1; those of int8 in two's complement, of the others written as 0 to 2 L (see `packing`)

The scale is fp32, not fp16: fp16 ends at 65504 and at 6e-8, so that one outlier of 1e30 becomes infinite and a block of small
gradients becomes zero. The two more bytes per block are 0.06 bit per value.

With absmax, no error exceeds half a step, that is 1 / 2L of the largest magnitude in the block, whatever the distribution. For
the least squared error at few bits, the levels must be where the values are: see `lloydmax`.

"-unbiased" rounds up or down at random, so that the mean over many inputs is right where nothing else corrects the error, at
twice the squared error or more. The random numbers are seeded by the bits of the input: the same input gives the same bytes.

Measured by `benchmarks/codecs.py`, where a squared error of 1 is that of sending nothing:

            bits per    times less   squared error:              of a normal value cubed:
            element     than fp32    normal values   unbiased    to the nearest   unbiased
    int8    8.125       3.94         4.9e-5          9.7e-5      2.6e-4           5.5e-4
    int4    4.125       7.76         0.0160          0.0319      0.0464           0.115
    int3    3.125       10.2         0.0870          0.174       0.161            0.458
    int2    2.125       15.1         0.652           1.43        0.524            2.21
"""

# Shape suffixes: N = elements, K = blocks, B = elements per block (the last block may be shorter).

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body, packing

Floats = npt.NDArray[np.float32]
VERSION = 1
BLOCK = 256
STRIP = 2**18  # elements that are worked on at once: 1 MiB stays in the cache
FEW = 2**14  # elements, up to which numpy is quicker: to call an operation of torch takes as long as 10,000 elements

MAX_FLOAT = torch.finfo(torch.float32).max

MIN_SCALE = torch.finfo(torch.float32).tiny
"""Smaller scales are written as zero, and so is their block (of int8, all below 1.5e-36): what a subnormal number is worth
depends on the flush-to-zero mode of the machine that multiplies by it."""


@dataclass(frozen=True)
class Blockwise:
    """Block-wise absmax quantization to `bits`, to the nearest level or (`unbiased`) to one of the two nearest at random."""

    bits: int
    codec_id: int
    unbiased: bool = False

    @property
    def name(self) -> str:
        return f"int{self.bits}" + "-unbiased" * self.unbiased

    @property
    def bits_per_element(self) -> float:
        return self.bits + 32 / BLOCK

    @property
    def largest_step(self) -> int:
        """L."""
        return (1 << (self.bits - 1)) - 1

    @property
    def max_scale(self) -> float:
        """L times a larger one could be infinite. Only values above 3.376e38 feel it: they saturate, by less than 1 %."""
        return MAX_FLOAT / 128 * (127 // self.largest_step)

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32."""
        x_N = body.encodable(x)
        body.require_finite(x_N)
        n = x_N.numel()
        if n <= FEW and self.bits == 8 and not self.unbiased and x_N.device.type == "cpu":
            return body.pack_arrays(self.codec_id, VERSION, n, *self._quantize_few(x_N.numpy()))
        q_N = torch.empty(n, dtype=torch.int8, device=x_N.device)
        random = None
        if self.unbiased:
            seed = int(x_N.view(torch.int32).sum(dtype=torch.int64))
            random = torch.Generator(x_N.device).manual_seed(seed)
        scales = [
            self._quantize(rows, q_rows, random) for rows, q_rows in zip(strips(x_N, BLOCK), strips(q_N, BLOCK), strict=True)
        ]
        scale_K = torch.cat(scales) if scales else x_N.new_empty(0)
        packed = q_N if self.bits == 8 else packing.pack(q_N + self.largest_step, self.bits)
        return body.pack(self.codec_id, VERSION, n, scale_K, packed)

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        n_blocks = -(-numel // BLOCK)
        n_packed = packing.packed_bytes(numel, self.bits)
        raw = body.unpack(data, self.codec_id, VERSION, numel, 4 * n_blocks + n_packed)
        wire_K = body.numbers(raw, "float32", n_blocks)
        self._check_scales(wire_K)
        if self.bits == 8 and numel <= FEW:
            return torch.from_numpy(_multiplied(body.numbers(raw, "int8", numel, offset=4 * n_blocks), wire_K))
        if self.bits == 8:
            x_N = body.read(raw, "int8", numel, offset=4 * n_blocks).to(torch.float32)
        else:
            code_N = packing.unpack(body.read(raw, "uint8", n_packed, offset=4 * n_blocks), self.bits, numel)
            if numel and int(code_N.max()) > 2 * self.largest_step:
                raise CodecError(f"{self.name} body has a step that is not in -{self.largest_step} to {self.largest_step}")
            x_N = code_N.to(torch.float32).sub_(self.largest_step)
        scale_K = body.read(raw, "float32", n_blocks)
        start = 0
        for rows in blocks(x_N, BLOCK):
            rows.mul_(scale_K[start : start + len(rows), None])
            start += len(rows)
        return x_N

    def part(self, data: bytes | memoryview, numel: int, first: int, last: int) -> bytes:
        """The body of elements `first`, a multiple of BLOCK, to `last` alone, out of one that was decoded before."""
        raw = memoryview(data).cast("B")[body.HEADER.size :]
        scales = raw[4 * (first // BLOCK) : 4 * -(-last // BLOCK)]
        packed = packing.part(raw[4 * -(-numel // BLOCK) :], self.bits, numel, first, last)
        return b"".join((body.HEADER.pack(self.codec_id, VERSION, 0, last - first), scales, *packed))

    def _check_scales(self, scale_K: Floats) -> None:
        """Raises: CodecError."""
        # written so that NaN, which compares false to everything, is refused too
        if not len(scale_K) or (scale_K.min() >= MIN_SCALE and scale_K.max() <= self.max_scale):
            return
        allowed_K = (scale_K == 0) | ((scale_K >= MIN_SCALE) & (scale_K <= self.max_scale))
        if not allowed_K.all():
            raise CodecError(f"{self.name} body has a scale that is neither 0 nor in {MIN_SCALE:.4g} to {self.max_scale:.4g}")

    def _quantize_few(self, x_N: Floats) -> tuple[Floats, npt.NDArray[np.int8]]:
        """The scales (K) and steps (N) that `_quantize` gives, bit for bit."""
        scale_K, start = np.empty(-(-len(x_N) // BLOCK), np.float32), 0
        for x_KB in _rows(x_N):
            np.maximum(x_KB.max(axis=1), -x_KB.min(axis=1), out=scale_K[start : start + len(x_KB)])
            start += len(x_KB)
        scale_K /= np.float32(self.largest_step)
        np.minimum(scale_K, np.float32(self.max_scale), out=scale_K)
        scale_K[scale_K < MIN_SCALE] = 0.0
        per_step_K = np.zeros_like(scale_K)
        np.reciprocal(scale_K, out=per_step_K, where=scale_K > 0)
        steps_N = _multiplied(x_N, per_step_K)
        np.rint(steps_N, out=steps_N)
        np.minimum(steps_N, self.largest_step, out=steps_N)  # clip() takes longer than both of these
        np.maximum(steps_N, -self.largest_step, out=steps_N)
        return scale_K, steps_N.astype(np.int8)

    def _quantize(self, x_KB: Tensor, q_KB: Tensor, random: torch.Generator | None) -> Tensor:
        """Write the steps of `x_KB` into `q_KB`; their scales (K)."""
        # amax and amin: one abs() less to allocate, and 30 times as fast as aminmax along rows
        absmax_K1 = torch.maximum(x_KB.amax(dim=1, keepdim=True), -x_KB.amin(dim=1, keepdim=True))
        # by a tensor: a GPU divides by a number as it multiplies by its inverse, which gives other bits
        scale_K1 = (absmax_K1 / absmax_K1.new_full((), self.largest_step)).clamp_max(self.max_scale)
        scale_K1 = scale_K1.where(scale_K1 >= MIN_SCALE, 0.0)
        per_step_K1 = scale_K1.reciprocal().where(scale_K1 > 0, 0.0)
        steps_KB = x_KB * per_step_K1
        if random is None:
            steps_KB.round_()
        else:
            steps_KB.add_(torch.rand(steps_KB.shape, generator=random, dtype=torch.float32, device=steps_KB.device)).floor_()
        q_KB.copy_(steps_KB.clamp_(-self.largest_step, self.largest_step))
        return scale_K1.flatten()


def _rows(x_N: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """`blocks`, of an array, with blocks of BLOCK."""
    n_whole = len(x_N) - len(x_N) % BLOCK
    rows = [x_N[:n_whole].reshape(-1, BLOCK)] if n_whole else []
    return rows if n_whole == len(x_N) else [*rows, x_N[n_whole:].reshape(1, -1)]


def _multiplied(x_N: npt.NDArray[Any], scale_K: Floats) -> Floats:
    """Each value times the scale of its block, in memory of its own."""
    out_N, start = np.empty(len(x_N), np.float32), 0
    for rows, out in zip(_rows(x_N), _rows(out_N), strict=True):
        np.multiply(rows, scale_K[start : start + len(rows), None], out=out)
        start += len(rows)
    return out_N


def blocks(x_N: Tensor, block: int) -> list[Tensor]:
    """Views of `x_N` that cover it: the whole blocks (K, B), and what is left (1, N mod B). Either is missing if empty."""
    n_left = x_N.numel() % block
    n_whole = x_N.numel() - n_left
    if not n_left:  # as a rule
        return [x_N.view(-1, block)] if n_whole else []
    left = [x_N[n_whole:].view(1, -1)]
    return [x_N[:n_whole].view(-1, block), *left] if n_whole else left


def strips(x_N: Tensor, block: int) -> list[Tensor]:
    """The same, in pieces that stay in the cache of a CPU; other devices take all whole blocks at once."""
    if x_N.device.type != "cpu":
        return blocks(x_N, block)
    return [strip for view in blocks(x_N, block) for strip in torch.split(view, STRIP // block)]


INT8: Final = Blockwise(8, codec_id=4)
INT4: Final = Blockwise(4, codec_id=6)
INT3: Final = Blockwise(3, codec_id=7)
INT2: Final = Blockwise(2, codec_id=8)
UNBIASED: Final = tuple(Blockwise(c.bits, c.codec_id, unbiased=True) for c in (INT8, INT4, INT3, INT2))
"""What they write is decoded by those without the suffix, too."""
