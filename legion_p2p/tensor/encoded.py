"""A value that stays encoded, of which a piece at a time is decoded.

An owner combines the pushes of all members of a region. Decoded, they take as many times the memory of a shard; so where they are
many, what combines them reads them piece by piece, in the same order and with the same bits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from legion_p2p.tensor.blockwise import Blockwise
from legion_p2p.tensor.codec import Codec, decode_shared
from legion_p2p.tensor.dense import Dense
from legion_p2p.tensor.lloydmax import LloydMax
from legion_p2p.tensor.mixed import Mixed
from legion_p2p.tensor.topk import CHUNK, TopK

ALIGN = CHUNK  # elements: pieces begin at a multiple, which is one of every codec's blocks as well
MAX_DECODED_BYTES = 1 << 25  # of a round's pushes, held decoded because that is quicker: the largest shard once

Read = Callable[[int, int], Tensor]


class EncodedValue:
    """What decoding gives, as a tensor that can be asked for slices alone. It has been checked: decoding it succeeds."""

    dtype = torch.float32

    def __init__(self, codec: Codec, data: bytes | memoryview, numel: int) -> None:
        self._codec = codec
        self._data = data
        self._numel = numel
        self._read = _reader(codec, data, numel)

    @property
    def shape(self) -> tuple[int]:
        return (self._numel,)

    def numel(self) -> int:
        return self._numel

    def __len__(self) -> int:
        return self._numel

    def __getitem__(self, where: slice) -> Tensor:
        start, stop, _ = where.indices(self._numel)
        first, last = start - start % ALIGN, min(self._numel, -(-stop // ALIGN) * ALIGN)
        return self._read(first, last)[start - first : max(start, stop) - first]

    def whole(self) -> Tensor:
        """All of it, not to be changed."""
        return decode_shared(self._codec, self._data, self._numel)


Value = Tensor | EncodedValue
"""1-D fp32 on the CPU, or what decodes to that."""


def whole(value: Value) -> Tensor:
    """All of it, not to be changed."""
    return value.whole() if isinstance(value, EncodedValue) else value


def can_be_read_in_pieces(codec: Codec) -> bool:
    """One that is registered by somebody else can not."""
    if isinstance(codec, Mixed):
        return all(map(can_be_read_in_pieces, codec.codecs))
    return isinstance(codec, Dense | Blockwise | LloydMax | TopK)


class Payload:
    """An encoded value that has been checked: called, it gives the value."""

    def __init__(self, codec: Codec, data: bytes | memoryview, numel: int) -> None:
        self.codec = codec
        self.data = data
        self.numel = numel

    def __call__(self) -> Tensor:
        return decode_shared(self.codec, self.data, self.numel)


def values_of(payloads: Sequence[Payload]) -> list[Value]:
    """To be combined: decoded where that takes little, and else to be read in pieces."""
    if 4 * sum(payload.numel for payload in payloads) <= MAX_DECODED_BYTES:
        return [payload() for payload in payloads]
    return [
        EncodedValue(payload.codec, payload.data, payload.numel) if can_be_read_in_pieces(payload.codec) else payload()
        for payload in payloads
    ]


def _reader(codec: Codec, data: bytes | memoryview, numel: int) -> Read:
    """Decodes the elements from one multiple of ALIGN to another, or to the end."""
    if isinstance(codec, TopK):
        sparse = codec.parse(data, numel)
        return lambda first, last: codec.filled(sparse, first, last)
    if isinstance(codec, Mixed):
        return _mixed_reader(codec, data, numel)
    assert isinstance(codec, Dense | Blockwise | LloydMax)
    return lambda first, last: codec.decode(codec.part(data, numel, first, last), last - first)


def _mixed_reader(codec: Mixed, data: bytes | memoryview, numel: int) -> Read:
    parts = [(ranges, EncodedValue(part, raw, n)) for part, raw, n, ranges in codec.parts(data, numel)]

    def read(first: int, last: int) -> Tensor:
        out = torch.empty(last - first, dtype=torch.float32, device="cpu")
        for ranges, part in parts:
            at = 0
            for a, b in ranges:
                low, high = max(a, first), min(b, last)
                if low < high:
                    out[low - first : high - first] = part[at + low - a : at + high - a]
                at += b - a
        return out

    return read
