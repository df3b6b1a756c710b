"""One to four bits per value at the least squared error: the levels of Lloyd and Max for normal values (Max 1960, table I), and
one scale per block.

    body = K scales (bf16), then N codes of `bits` (see `packing`);  K = ceil(N / 512)
    code = number of the level, sign in its highest bit;  value = +-level * scale of its block

The scale of a block is the one with the least squared error for the codes chosen, <|x|, level> / <level, level>. So no block is
worse than not sending it, and with one level it is the mean magnitude: sign compression (Bernstein et al., 1802.04434), which
needs error feedback (Karimireddy et al., 1901.09847). An outlier spoils its own block: the levels have no zero.

Measured by `benchmarks/codecs.py`, where a squared error of 1 is that of sending nothing. Max's distortion is for a known scale;
a block of 512 fits its own, so that a little less is left:

              bits per    times less   squared error:             of a normal
              element     than fp32    normal values   in theory  value cubed
    gauss4    4.031       7.94         0.00943         0.00950    0.172
    gauss3    3.031       10.6         0.0343          0.0345     0.271
    gauss2    2.031       15.8         0.117           0.1175     0.500
    sign      1.031       31.0         0.363           0.3634     0.829

Even steps (`blockwise`) with 4 or 3 bits leave less of heavy tails, which reach beyond the outermost level here.
"""

# Shape suffixes: N = elements, K = blocks, B = elements per block (the last block may be shorter).

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body, packing
from legion_p2p.tensor.blockwise import blocks, strips

VERSION = 1
BLOCK = 512
LOWEST_SCALE = 0x0D80
"""bf16 bits of 2**-100. Smaller scales are written as zero, and so is their block: no product is subnormal."""
HIGHEST_SCALE = 0x7E80
"""bf16 bits of 2**126. No product is infinite; only blocks whose root mean square is above 8.5e37 saturate."""


@dataclass(frozen=True)
class LloydMax:
    """Block-wise quantization to +-`levels`."""

    name: str
    codec_id: int
    bits: int
    levels: tuple[float, ...]
    """2**(bits-1) positive ones, ascending, in units of the root mean square."""

    @property
    def bits_per_element(self) -> float:
        return self.bits + 16 / BLOCK

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32."""
        x_N = body.encodable(x)
        body.require_finite(x_N)
        n = x_N.numel()
        code_N = torch.empty(n, dtype=torch.uint8, device=x_N.device)
        scales = [
            self._quantize(rows, code_rows) for rows, code_rows in zip(strips(x_N, BLOCK), strips(code_N, BLOCK), strict=True)
        ]
        scale_K = torch.cat(scales) if scales else x_N.new_empty(0, dtype=torch.int16)
        return body.pack(self.codec_id, VERSION, n, scale_K, packing.pack(code_N, self.bits))

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        n_blocks = -(-numel // BLOCK)
        n_packed = packing.packed_bytes(numel, self.bits)
        raw = body.unpack(data, self.codec_id, VERSION, numel, 2 * n_blocks + n_packed)
        scale_K = body.read(raw, "int16", n_blocks).int()
        if not bool(((scale_K == 0) | ((scale_K >= LOWEST_SCALE) & (scale_K <= HIGHEST_SCALE))).all()):
            raise CodecError(f"{self.name} body has a scale that is neither 0 nor in 2**-100 to 2**126")
        code_N = packing.unpack(body.read(raw, "uint8", n_packed, 2 * n_blocks), self.bits, numel)
        values = torch.tensor([*self.levels, *(-level for level in self.levels)], dtype=torch.float32, device="cpu")
        x_N = values.index_select(0, code_N.int())
        scale_K1 = (scale_K << 16).view(torch.float32)[:, None]
        start = 0
        for rows in blocks(x_N, BLOCK):
            rows.mul_(scale_K1[start : start + len(rows)])
            start += len(rows)
        return x_N

    def part(self, data: bytes | memoryview, numel: int, first: int, last: int) -> bytes:
        """The body of elements `first`, a multiple of BLOCK, to `last` alone, out of one that was decoded before."""
        raw = memoryview(data).cast("B")[body.HEADER.size :]
        scales = raw[2 * (first // BLOCK) : 2 * -(-last // BLOCK)]
        packed = packing.part(raw[2 * -(-numel // BLOCK) :], self.bits, numel, first, last)
        return b"".join((body.HEADER.pack(self.codec_id, VERSION, 0, last - first), scales, *packed))

    def _quantize(self, x_KB: Tensor, code_KB: Tensor) -> Tensor:
        """Write the codes of `x_KB` into `code_KB`; bits of their scales (K, int16)."""
        magnitude_KB = x_KB.abs()
        largest_K1 = magnitude_KB.amax(dim=1, keepdim=True)
        # relative to the largest, lest the sum of huge squares be infinite
        unit_KB = magnitude_KB.div_(largest_K1.where(largest_K1 > 0, 1.0))
        rms_K1 = unit_KB.square().mean(dim=1, keepdim=True).sqrt_()
        unit_KB.div_(rms_K1.where(rms_K1 > 0, 1.0))
        level_KB = torch.zeros_like(code_KB)
        for low, high in zip(self.levels, self.levels[1:], strict=False):
            level_KB += (unit_KB > (low + high) / 2).view(torch.uint8)
        value_KB = (
            torch.tensor(self.levels, dtype=torch.float32, device=x_KB.device)
            .index_select(0, level_KB.flatten().int())
            .view_as(x_KB)
        )
        scale_K = (unit_KB * value_KB).sum(dim=1) / value_KB.square().sum(dim=1) * (rms_K1 * largest_K1).flatten()
        torch.add(level_KB, x_KB < 0, alpha=len(self.levels), out=code_KB)
        bits_K = scale_K.to(torch.bfloat16).view(torch.int16).clamp_max(HIGHEST_SCALE)
        return bits_K.where(bits_K >= LOWEST_SCALE, 0)


SIGN: Final = LloydMax("sign", 9, 1, (1.0,))
GAUSS2: Final = LloydMax("gauss2", 10, 2, (0.45278, 1.5104176))
GAUSS3: Final = LloydMax("gauss3", 11, 3, (0.2450942, 0.7560053, 1.3439093, 2.1519457))
GAUSS4: Final = LloydMax("gauss4", 12, 4, (0.128395, 0.3880483, 0.6567591, 0.9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896))
