"""Small integers in fewer bits than a byte, and gaps between indices in the bits that they need.

A number of `width` bits is cut into pieces of 8, 4, 2 and 1 bits, the lowest first. All first pieces come first, then all second
ones; within a byte, the first of them has the lowest bits. Everything is a few operations on the whole tensor, on any device.
"""

# Shape suffixes: N = numbers, M = bytes, P = pieces in a byte.

from typing import Final

import torch
from torch import Tensor

from legion_p2p.errors import CodecError
from legion_p2p.tensor import body


def _pieces(width: int) -> list[tuple[int, int]]:
    """(first bit, bits) of each piece of a number."""
    pieces, start = [], 0
    for bits in (8, 8, 4, 2, 1):
        if width - start >= bits:
            pieces.append((start, bits))
            start += bits
    return pieces


def packed_bytes(n: int, width: int) -> int:
    """What pack() makes of `n` numbers: less than one byte for each piece above n * width / 8."""
    return sum(-(-n * bits // 8) for _, bits in _pieces(width))


def pack(numbers_N: Tensor, width: int) -> Tensor:
    """Non-negative integers below 2**width, with width 0 to 16, as uint8 on the same device."""
    n = numbers_N.numel()
    rows = [numbers_N.new_empty(0, dtype=torch.uint8)]
    for start, bits in _pieces(width):
        per_byte = 8 // bits
        n_bytes = -(-n // per_byte)
        piece = numbers_N if width <= 8 and start == 0 else numbers_N >> start
        piece_N = piece.to(torch.uint8)
        if start + bits < width:
            piece_N = piece_N & (2**bits - 1)
        if n_bytes * per_byte > n:
            piece_N = torch.nn.functional.pad(piece_N, (0, n_bytes * per_byte - n))
        piece_MP = piece_N.view(n_bytes, per_byte)
        row_M = piece_MP[:, 0].clone()
        for i in range(1, per_byte):
            row_M |= piece_MP[:, i] << (i * bits)
        rows.append(row_M)
    return torch.cat(rows)


def unpack(packed: Tensor, width: int, n: int) -> Tensor:
    """The `n` numbers that pack() wrote, as int32, or as uint8 if width is 8 or less.

    Raises: CodecError, if there is anything but zeros in the padding.
    """
    numbers_N = torch.zeros(n, dtype=torch.int32 if width > 8 else torch.uint8, device="cpu")
    offset = 0
    for start, bits in _pieces(width):
        per_byte = 8 // bits
        n_bytes = -(-n // per_byte)
        row_M = packed[offset : offset + n_bytes]
        offset += n_bytes
        piece_MP = torch.stack([(row_M >> (i * bits)) & (2**bits - 1) for i in range(per_byte)], dim=1)
        piece = piece_MP.flatten() if per_byte > 1 else row_M
        if bool(piece[n:].any()):
            raise CodecError("padding of packed numbers is not zero")
        piece_N = piece[:n]
        numbers_N |= piece_N.to(numbers_N.dtype) << start if start else piece_N
    return numbers_N


def part(packed: memoryview, width: int, n: int, first: int, last: int) -> list[memoryview]:
    """What pack() would make of numbers `first`, a multiple of 8, to `last`, or to the end: out of what it made of all `n`."""
    parts, offset = [], 0
    for _, bits in _pieces(width):
        parts.append(packed[offset + first * bits // 8 : offset + -(-last * bits // 8)])
        offset += -(-n * bits // 8)
    return parts


PLAIN: Final = 12
"""The Rice parameter that stands for 12 plain bits per gap, and nothing in unary: gaps in chunks of 4096 all fit."""


def rice(gaps_N: Tensor) -> tuple[int, Tensor, Tensor]:
    """Golomb-Rice code of integers from 0 to 4095 (Rice 1979): (b, packed remainders, packed quotients), on the same device.

    A gap is its `b` low bits, and how often 2**b fits into it: that many zeros and a one. All remainders come first, then all
    zeros and ones, so that neither has to be read to find the other. `b` is the one that makes the least of these gaps; where the
    gaps are all long, PLAIN is. For random indices, k of each 4096, it costs 0.1 bit per index above the entropy.
    """
    n = gaps_N.numel()
    # one more bit per remainder halves the zeros: the cost is convex in b, so the first rise ends the search
    b, quotient_N = 0, gaps_N
    zeros = int(quotient_N.sum())
    while b < PLAIN - 1:
        halved_N = quotient_N >> 1
        fewer = int(halved_N.sum())
        if zeros - fewer <= n:
            break
        b, quotient_N, zeros = b + 1, halved_N, fewer
    if n * (b + 1) + zeros >= n * PLAIN:
        return PLAIN, pack(gaps_N, PLAIN), gaps_N.new_empty(0, dtype=torch.uint8)
    ends_N = (quotient_N + 1).cumsum(0)
    bits = gaps_N.new_zeros(n + zeros, dtype=torch.uint8)
    bits[ends_N - 1] = 1
    return b, pack(gaps_N & (2**b - 1), b), pack(bits, 1)


def most_rice_bytes(n: int, b: int, total: int) -> int:
    """What `n` gaps that add up to `total` take at most."""
    return packed_bytes(n, b) + (0 if b == PLAIN else -(-(n + (total >> b)) // 8))


def read_rice(stream: memoryview, b: int, n: int) -> Tensor:
    """The `n` gaps (int32) of a whole `stream`, which the caller has found to be at most `most_rice_bytes` long.

    Raises: CodecError, if it is not what rice() writes for `n` gaps below 4096.
    """
    n_remainder_bytes = packed_bytes(n, b)
    n_unary_bytes = len(stream) - n_remainder_bytes
    if n_unary_bytes < 0 or (b == PLAIN and n_unary_bytes):
        raise CodecError(f"{len(stream)} bytes of indices, {n_remainder_bytes} expected for {n} remainders")
    packed = body.read(stream, "uint8", len(stream))
    gaps_N = unpack(packed[:n_remainder_bytes], b, n).to(torch.int32)
    if b == PLAIN:
        return gaps_N
    ends_N = unpack(packed[n_remainder_bytes:], 1, 8 * n_unary_bytes).nonzero().flatten().to(torch.int32)
    if len(ends_N) != n:
        raise CodecError(f"{len(ends_N)} indices, {n} expected")
    if n_unary_bytes != (int(ends_N[-1]) // 8 + 1 if n else 0):
        raise CodecError("bytes after the last index")
    quotient_N = ends_N.diff(prepend=ends_N.new_full((1,), -1)) - 1
    if bool((quotient_N >= 1 << (PLAIN - b)).any()):
        raise CodecError("a gap beyond the chunk")
    return gaps_N | quotient_N << b
