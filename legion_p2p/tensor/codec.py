"""A codec turns a flat tensor into bytes and back.

Every encoded body says which codec wrote it, in what version, and how many elements it holds (see `body`). Decoding checks all of
it against what the receiver expects, and gives the same bits on every machine: elementwise arithmetic only, nothing whose order
of summation depends on the hardware.
"""

from typing import Protocol

from torch import Tensor

from legion_p2p.errors import CodecError, UsageError
from legion_p2p.tensor import topk
from legion_p2p.tensor.blockwise import INT2, INT3, INT4, INT8, UNBIASED
from legion_p2p.tensor.dense import BF16, FP16, FP32, Dense
from legion_p2p.tensor.lloydmax import GAUSS2, GAUSS3, GAUSS4, SIGN
from legion_p2p.tensor.topk import READY_MADE

__all__ = ["Codec", "decode_shared", "get", "names", "register"]


class Codec(Protocol):
    """Stateless, so that one instance serves all tensors and threads."""

    @property
    def name(self) -> str: ...

    @property
    def bits_per_element(self) -> float:
        """Of a long tensor; a short one pays the header of 8 bytes, too. An entropy-coded body may differ by some per cent."""

    def encode(self, x: Tensor) -> bytes:
        """`x` is 1-D contiguous fp32 on any device, of any length. Only compressed bytes cross to the host.

        Raises: NonFiniteError, if there is NaN or infinity in `x`; UsageError, if it is no such tensor.
        """

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """1-D fp32 on the CPU, all finite; the caller may change it. Takes memory for `numel`, whatever `data` claims.

        Raises: CodecError, if `data` is not exactly what this codec writes for `numel` elements.
        """


_codecs: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Let `codec` be found by its name.

    Raises: UsageError, if another one has that name.
    """
    if _codecs.setdefault(codec.name, codec) is not codec:
        raise UsageError(f"a codec named {codec.name!r} is registered already")


def names() -> tuple[str, ...]:
    """Those of all registered codecs, sorted."""
    return tuple(sorted(_codecs))


def get(name: str) -> Codec:
    """One of `names()`, or any "topk<k>-<bits>bit" with k in 1 to 2048 and bits 1, 2, 4, 8 or 16.

    Raises: CodecError, if there is none of that name.
    """
    found = _codecs.get(name) or topk.parse(name)
    if found is None:
        # the name may come from a stranger's run specification: do not repeat all of it
        raise CodecError(f"unknown codec {name[:40]!r}, known are {', '.join(names())}, and other topk<k>-<bits>bit")
    return found


def decode_shared(codec: Codec, data: bytes | memoryview, numel: int) -> Tensor:
    """`codec.decode`, for a caller that changes nothing: what can be read where it lies is not copied. Raises: CodecError."""
    return codec.decode_shared(data, numel) if isinstance(codec, Dense) else codec.decode(data, numel)


_DENSE: tuple[Codec, ...] = (FP32, FP16, BF16, INT8, INT4, INT3, INT2, *UNBIASED, GAUSS4, GAUSS3, GAUSS2, SIGN)
for _codec in (*_DENSE, *READY_MADE):
    register(_codec)
