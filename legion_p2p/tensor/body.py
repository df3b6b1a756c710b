"""What every encoded tensor starts with, and how its bytes are read without trusting them.

    byte 0      codec id            which family wrote it
    byte 1      format version      of that family
    bytes 2..3  zero                keeps what follows aligned to 8
    bytes 4..7  number of elements  little-endian, like all that follows

The header repeats what the receiver expects and is only ever compared: how much memory is taken depends on the
receiver's own `numel`, never on what a stranger wrote.
"""

import math
import struct
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.errors import CodecError, NonFiniteError, UsageError

HEADER = struct.Struct("<BBHI")
MAX_NUMEL = 2**32 - 1  # what the header can say; a shard has some million


def pack(codec_id: int, version: int, numel: int, *parts: Tensor) -> bytes:
    """Header and `parts` in a row. Each part is contiguous, on any device; here is where it crosses to the host."""
    # numpy knows no bf16: let its bits pass as integers
    plain = (part.view(torch.int16) if part.dtype == torch.bfloat16 else part for part in parts)
    return pack_arrays(codec_id, version, numel, *(part.cpu().numpy() for part in plain))


def pack_arrays(codec_id: int, version: int, numel: int, *parts: npt.NDArray[Any]) -> bytes:
    """`pack`, of contiguous arrays."""
    pieces: list[bytes | memoryview] = [HEADER.pack(codec_id, version, 0, numel)]
    pieces += (part.astype(part.dtype.newbyteorder("<"), copy=False).data for part in parts)
    return b"".join(pieces)


def unpack(
    data: bytes | memoryview, codec_id: int, version: int, numel: int, body_bytes: int, most_bytes: int | None = None
) -> memoryview:
    """The bytes after the header: exactly `body_bytes`, or, with `most_bytes`, at least and at most that many.

    Raises: CodecError, if there are more or fewer, or the header differs from what is expected.
    """
    if not 0 <= numel <= MAX_NUMEL:
        raise UsageError(f"{numel} elements, must be 0 to {MAX_NUMEL}")
    view = memoryview(data).cast("B")
    fewest, most = HEADER.size + body_bytes, HEADER.size + (body_bytes if most_bytes is None else most_bytes)
    if not fewest <= len(view) <= most:
        expected = fewest if fewest == most else f"{fewest} to {most}"
        raise CodecError(f"{len(view)} bytes, {expected} expected for {numel} elements")
    seen = HEADER.unpack_from(view)
    if seen != (codec_id, version, 0, numel):
        raise CodecError(f"header says codec, version, zero, elements = {seen}, expected {(codec_id, version, 0, numel)}")
    return view[HEADER.size :]


def read(body: memoryview, dtype: str, count: int, offset: int = 0) -> Tensor:
    """`count` little-endian numbers of a numpy `dtype` from byte `offset` on, as a tensor of its own on the CPU."""
    return torch.from_numpy(numbers(body, dtype, count, offset).astype(dtype))  # copies: torch wants memory it may write to


def numbers(body: memoryview, dtype: str, count: int, offset: int = 0) -> npt.NDArray[Any]:
    """The same where they lie, not to be written to: a look at a few of them is several times as quick in numpy as in torch."""
    return np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), count, offset)


def in_place(body: memoryview) -> Tensor | None:
    """Its fp32 values where they lie, as a tensor that shares its memory. None: this machine cannot read them there."""
    values = np.frombuffer(body, np.dtype("<f4"))
    can_share = sys.byteorder == "little" and values.flags.aligned and values.flags.writeable  # torch knows no other memory
    return torch.from_numpy(values) if can_share else None


def unfilled(codec_id: int, version: int, numel: int) -> tuple[memoryview, Tensor]:
    """A body of fp32 values that are still to be written, into the tensor that is returned with it and shares its memory."""
    words = HEADER.size // 4
    whole_N = torch.empty(words + numel, dtype=torch.float32, device="cpu")
    data = whole_N.numpy().view(np.uint8).data
    HEADER.pack_into(data, 0, codec_id, version, 0, numel)
    return data, whole_N[words:]


def encodable(x: Tensor) -> Tensor:
    """`x`, checked to be what a codec takes.

    Raises: UsageError, if it is not a contiguous 1-D fp32 tensor of at most MAX_NUMEL elements.
    """
    if x.ndim != 1 or x.dtype != torch.float32 or not x.is_contiguous() or x.numel() > MAX_NUMEL:
        seen = f"{x.dtype} {tuple(x.shape)}{'' if x.is_contiguous() else ' not contiguous'}"
        raise UsageError(f"{seen} cannot be encoded, must be 1-D contiguous torch.float32 of at most {MAX_NUMEL}")
    return x.detach()


def is_finite(x: Tensor) -> bool:
    """No NaN and no infinity in `x`, of any shape.

    A sum of squares is finite only if each of its terms is: one pass, and one number to fetch. Where it is not, some value may
    only be large, so the smallest and the largest tell: NaN passes through both, an infinity is one of them. Both are many times
    as fast as isfinite().all().
    """
    if x.numel() == 0:
        return True
    if x.ndim == 1 and x.dtype == torch.float32 and math.isfinite(torch.dot(x.detach(), x.detach()).item()):
        return True
    low, high = torch.aminmax(x)
    return math.isfinite(low) and math.isfinite(high)


def is_zero(x: Tensor) -> bool:
    """All of `x`, 1-D fp32, is zero. Squares of small values are zero, too: only where all are does each have to be looked at."""
    return not torch.dot(x, x).item() and not bool(x.any())


def require_finite(x: Tensor) -> None:
    """Raises: NonFiniteError, if there is NaN or infinity in `x`."""
    if not is_finite(x):
        n_bad = int((~torch.isfinite(x)).sum())
        raise NonFiniteError(f"{n_bad} of {x.numel()} values are NaN or infinite")
