"""Two codecs on one shard: small and one-dimensional tensors dense, the rest with the run's main codec.

A layer's gains and biases are few and each matters; what a sparse codec saves on them is nothing.

    body = length of the main part (uint32), main part, dense part     each part is a whole body of its codec

The dense ranges are a function of the run's specification, so they are not sent.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body

if TYPE_CHECKING:
    from legion_p2p.tensor.codec import Codec

CODEC_ID: Final = 15
VERSION: Final = 1
_LENGTH_BYTES = 4

Ranges = tuple[tuple[int, int], ...]


class Mixed:
    """`dense` on `ranges` ([from, to), in order, within `numel`), `main` on everything else."""

    def __init__(self, main: "Codec", dense: "Codec", ranges: Sequence[tuple[int, int]], numel: int) -> None:
        self.name = main.name
        self.numel = numel
        self.ranges = tuple(ranges)
        self._main = main
        self._dense = dense
        self._n_dense = sum(b - a for a, b in ranges)
        ends = [0, *(edge for pair in ranges for edge in pair), numel]
        self._rest = tuple((a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b)

    @property
    def codecs(self) -> tuple["Codec", "Codec"]:
        return self._main, self._dense

    @property
    def bits_per_element(self) -> float:
        n_main = self.numel - self._n_dense
        return (self._main.bits_per_element * n_main + self._dense.bits_per_element * self._n_dense) / max(1, self.numel)

    def encode(self, x: Tensor) -> bytes:
        """Raises: NonFiniteError; UsageError, if `x` is not 1-D contiguous fp32 of `numel` elements."""
        x_N = body.encodable(x)
        main = self._main.encode(torch.cat([x_N[a:b] for a, b in self._rest]) if self._rest else x_N[:0])
        dense = self._dense.encode(torch.cat([x_N[a:b] for a, b in self.ranges]))
        head = body.HEADER.pack(CODEC_ID, VERSION, 0, self.numel)
        return b"".join((head, len(main).to_bytes(_LENGTH_BYTES, "little"), main, dense))

    def decode(self, data: bytes | memoryview, numel: int) -> Tensor:
        """Raises: CodecError."""
        out = torch.empty(numel, dtype=torch.float32, device="cpu")
        for codec, raw, n, ranges in self.parts(data, numel):
            _scatter(out, ranges, codec.decode(raw, n))
        return out

    def parts(self, data: bytes | memoryview, numel: int) -> tuple[tuple["Codec", memoryview, int, Ranges], ...]:
        """Each part: its codec, its body, its elements, and where these are. Raises: CodecError."""
        view = memoryview(data).cast("B")
        if numel != self.numel:
            raise CodecError(f"{numel} elements, this shard has {self.numel}")
        if len(view) < body.HEADER.size + _LENGTH_BYTES:
            raise CodecError(f"{len(view)} bytes, too few for two parts")
        raw = body.unpack(view, CODEC_ID, VERSION, numel, len(view) - body.HEADER.size)
        n_main = int.from_bytes(raw[:_LENGTH_BYTES], "little")
        parts = raw[_LENGTH_BYTES:]
        if n_main > len(parts):
            raise CodecError(f"a main part of {n_main} bytes in {len(parts)}")
        return (
            (self._main, parts[:n_main], numel - self._n_dense, self._rest),
            (self._dense, parts[n_main:], self._n_dense, self.ranges),
        )


def _scatter(out: Tensor, ranges: Sequence[tuple[int, int]], values: Tensor) -> None:
    at = 0
    for a, b in ranges:
        out[a:b] = values[at : at + b - a]
        at += b - a


def for_shard(main: "Codec", dense: "Codec | None", ranges: Sequence[tuple[int, int]], numel: int) -> "Codec":
    """`main`, with `dense` on `ranges` where that spends more bits than `main` would."""
    if dense is None or not ranges or dense.bits_per_element <= main.bits_per_element:
        return main
    return Mixed(main, dense, ranges, numel)
