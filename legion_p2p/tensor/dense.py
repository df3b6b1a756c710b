"""Every value on its own: fp32 as it is, fp16 and bf16 rounded to the nearest (ties to even).

Decoding widens, which is exact, so all machines get the same bits: fp16's subnormal numbers are normal ones in fp32, where no
flush-to-zero mode touches them.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body

VERSION = 1


@dataclass(frozen=True)
class Dense:
    """One of the float formats of torch. What is beyond its range saturates at its largest value, rather than become
    infinite: one outlier should cost its own excess (which error feedback keeps), not the whole round.
    """

    name: str
    codec_id: int
    dtype: torch.dtype
    wire: str
    """The numpy type with the same bits."""

    @property
    def bits_per_element(self) -> float:
        return 8.0 * self.dtype.itemsize

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32."""
        x_N = body.encodable(x)
        body.require_finite(x_N)
        if self.dtype != torch.float32:
            largest = torch.finfo(self.dtype).max
            x_N = x_N.clamp(-largest, largest).to(self.dtype)
        return body.pack(self.codec_id, VERSION, x_N.numel(), x_N)

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        raw = body.unpack(data, self.codec_id, VERSION, numel, numel * self.dtype.itemsize)
        return self._checked(body.read(raw, self.wire, numel).view(self.dtype).to(torch.float32))

    def part(self, data: bytes | memoryview, numel: int, first: int, last: int) -> bytes:
        """The body of elements `first` to `last` alone, out of one that was decoded before."""
        raw, size = memoryview(data).cast("B")[body.HEADER.size :], self.dtype.itemsize
        return b"".join((body.HEADER.pack(self.codec_id, VERSION, 0, last - first), raw[first * size : last * size]))

    def decode_shared(self, data: bytes | memoryview, numel: int) -> Tensor:
        """`decode`, for a caller that changes nothing: fp32 values are read where they lie. Raises: CodecError."""
        if self.dtype != torch.float32:
            return self.decode(data, numel)
        raw = body.unpack(data, self.codec_id, VERSION, numel, numel * self.dtype.itemsize)
        x_N = body.in_place(raw)
        return self.decode(data, numel) if x_N is None else self._checked(x_N)

    def encode_difference(self, a: Tensor, b: Tensor) -> tuple[memoryview, Tensor]:
        """`a - b` of two fp32 tensors on the CPU, in fp32: computed where it is sent from, and a view of that.

        Raises: NonFiniteError.
        """
        data, x_N = body.unfilled(self.codec_id, VERSION, a.numel())
        torch.sub(a.detach(), b.detach(), out=x_N)
        body.require_finite(x_N)
        return data, x_N

    def _checked(self, x_N: Tensor) -> Tensor:
        if not body.is_finite(x_N):
            raise CodecError(f"{self.name} body carries NaN or infinity")
        return x_N


FP32: Final = Dense("fp32", 1, torch.float32, "float32")
FP16: Final = Dense("fp16", 2, torch.float16, "int16")
BF16: Final = Dense("bf16", 3, torch.bfloat16, "int16")
