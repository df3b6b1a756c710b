"""Floats as the blocks of a base: byte planes, each compressed where it pays.

Trained weights have few exponents and random mantissas. Turned left by one bit, so that the sign leaves it, the top byte of a
float is its exponent, and all top bytes together shrink to about a third; the others do not shrink, and stay as they are.

    byte 0       how it is written: 0 plain, 1 in planes
    byte 1       of planes: which are compressed, one bit each, the lowest byte's first
    planes       from the lowest byte's to the highest's: n bytes as they are; or zstd, after its length in four bytes

fp32 (width 4) and bf16 (width 2), little-endian. It decodes to as many as the reader expects, whatever a block claims.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zstandard

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import LEAF_ELEMENTS, Base
from legion_p2p.errors import DecodeError, UsageError

PLAIN, PLANES = 0, 1
LEVEL = 1  # of zstd: 3 takes twice as long for less than one per cent
_UNSIGNED: dict[int, Any] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def encode_chunk(data: bytes | memoryview, width: int = 4) -> bytes:
    """The block for the bytes of at most LEAF_ELEMENTS floats of `width` bytes each."""
    turned_N = _floats(data, width)
    planes_WN = _turned(turned_N, width, left=True).view(np.uint8).reshape(-1, width).T
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    mask = 0
    parts: list[bytes] = []
    for i, plane_N in enumerate(planes_WN):
        plain = plane_N.tobytes()
        packed = compressor.compress(plain)
        if len(packed) + 4 < 0.98 * len(plain):
            mask |= 1 << i
            parts += [len(packed).to_bytes(4, "little"), packed]
        else:
            parts.append(plain)
    return b"".join([bytes([PLANES, mask]), *parts]) if mask else bytes([PLAIN]) + bytes(data)


def decode_chunk(block: bytes | memoryview, n_elements: int, width: int = 4) -> bytes:
    """The bytes of exactly `n_elements` floats. Raises: DecodeError."""
    block = memoryview(block)
    if n_elements > LEAF_ELEMENTS or width not in _UNSIGNED:
        raise UsageError(f"{n_elements} elements of {width} bytes in a leaf, at most {LEAF_ELEMENTS} of 2 or 4")
    if len(block) == 1 + n_elements * width and block[0] == PLAIN:
        return bytes(block[1:])
    if len(block) < 2 or block[0] != PLANES or block[1] >> width:
        raise DecodeError(
            f"a leaf of {len(block)} bytes that begins with {bytes(block[:2]).hex()}: not one of {n_elements} floats"
        )
    planes_NW = np.empty((n_elements, width), np.uint8)
    at = 2
    plane: bytes | memoryview
    for i in range(width):
        if block[1] >> i & 1:
            end = at + 4 + int.from_bytes(block[at : at + 4], "little")
            plane, at = _unpack(block[at + 4 : end], n_elements), end
        else:
            plane, at = block[at : at + n_elements], at + n_elements
        if len(plane) != n_elements:
            raise DecodeError(f"a leaf of {len(block)} bytes ends within its planes")
        planes_NW[:, i] = np.frombuffer(plane, np.uint8)
    if at != len(block):
        raise DecodeError(f"a leaf of {len(block)} bytes, of which its planes are {at}")
    return bytes(_turned(planes_NW.reshape(-1).view(_UNSIGNED[width]), width, left=False))


def base_bytes(get: Callable[[Cid], bytes], base: Base, n_elements: int) -> bytes:
    """A base's little-endian fp32 bytes out of blocks, checked against its digest. Raises: DecodeError, and what `get` raises."""
    sizes = chunk_sizes(n_elements)
    if len(sizes) != len(base.leaves):
        raise DecodeError(f"a base of {len(base.leaves)} leaves, {n_elements} elements are {len(sizes)}")
    data = b"".join(decode_chunk(get(cid), size) for cid, size in zip(base.leaves, sizes, strict=True))
    if hashlib.sha256(data).digest() != base.digest:
        raise DecodeError(f"the leaves of a base in version {base.version} are not what its digest says")
    return data


def split(data: bytes | memoryview, width: int = 4) -> Iterator[memoryview]:
    """A shard's bytes, cut into what one leaf holds each."""
    view, size = memoryview(data).cast("B"), LEAF_ELEMENTS * width
    return (view[at : at + size] for at in range(0, len(view), size))


def chunk_sizes(n_elements: int) -> list[int]:
    """How many elements each leaf of a shard holds."""
    return [min(LEAF_ELEMENTS, n_elements - at) for at in range(0, n_elements, LEAF_ELEMENTS)]


def _floats(data: bytes | memoryview, width: int) -> Any:
    if width not in _UNSIGNED or len(data) % width or len(data) > LEAF_ELEMENTS * width:
        raise UsageError(f"{len(data)} bytes of floats of {width} bytes, at most {LEAF_ELEMENTS} whole ones of 2 or 4")
    return np.frombuffer(data, _UNSIGNED[width])


def _turned(bits_N: Any, width: int, *, left: bool) -> Any:
    by, back = (1, 8 * width - 1) if left else (8 * width - 1, 1)
    return (bits_N << bits_N.dtype.type(by)) | (bits_N >> bits_N.dtype.type(back))


def _unpack(packed: memoryview, size: int) -> bytes:
    """A plane of exactly `size` bytes; no memory is taken for more."""
    try:
        if zstandard.frame_content_size(packed) != size:
            raise DecodeError(f"a plane that claims other than {size} bytes")
        return zstandard.ZstdDecompressor(max_window_size=1 << 20).decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise DecodeError(f"a plane of {len(packed)} bytes cannot be read: {bad}") from bad
