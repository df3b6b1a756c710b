"""Leaves: floats as blocks, smaller where it pays, back bit for bit, and never more than the reader asked for."""

import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.manifest import LEAF_ELEMENTS, MAX_LEAF_BYTES
from legion_p2p.core.shard_chunks import PLAIN, PLANES, chunk_sizes, decode_chunk, encode_chunk, split
from legion_p2p.errors import DecodeError, UsageError

GAUSSIAN = np.random.default_rng(0).normal(0, 0.02, LEAF_ELEMENTS).astype("<f4")
widths = pytest.mark.parametrize("width", [2, 4])


def as_bytes(values: np.ndarray, width: int) -> bytes:
    """fp32, or its upper half: bf16."""
    return values.tobytes() if width == 4 else (values.view("<u4") >> 16).astype("<u2").tobytes()


@widths
@given(st.binary(max_size=2000))
def test_every_bit_comes_back(width: int, data: bytes) -> None:
    data = data[: len(data) // width * width]

    assert decode_chunk(encode_chunk(data, width), len(data) // width, width) == data


@pytest.mark.parametrize(("width", "at_most"), [(4, 0.86), (2, 0.72)])
def test_gaussian_weights_shrink_by_what_their_exponents_repeat(width: int, at_most: float) -> None:
    data = as_bytes(GAUSSIAN, width)

    leaf = encode_chunk(data, width)

    assert leaf[0] == PLANES and len(leaf) < at_most * len(data)
    assert decode_chunk(leaf, LEAF_ELEMENTS, width) == data


def test_what_does_not_shrink_stays_plain_and_fits_a_block() -> None:
    noise = np.random.default_rng(0).bytes(4 * LEAF_ELEMENTS)

    leaf = encode_chunk(noise)

    assert leaf[0] == PLAIN and len(leaf) == len(noise) + 1 <= MAX_LEAF_BYTES
    assert decode_chunk(leaf, LEAF_ELEMENTS) == noise


def test_special_values_are_kept_as_they_are() -> None:
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38], "<f4").tobytes() * 100

    assert decode_chunk(encode_chunk(odd), 800) == odd


def test_a_shard_is_cut_as_its_sizes_say() -> None:
    n = 2 * LEAF_ELEMENTS + 5

    assert chunk_sizes(n) == [len(part) // 4 for part in split(bytes(4 * n))] == [LEAF_ELEMENTS, LEAF_ELEMENTS, 5]


def test_a_leaf_of_another_length_is_refused() -> None:
    for leaf in (encode_chunk(bytes(400)), encode_chunk(np.random.default_rng(0).bytes(400))):
        for n in (0, 99, 101):
            with pytest.raises(DecodeError):
                decode_chunk(leaf, n)


def test_a_plane_that_unfolds_to_more_takes_no_memory() -> None:
    bomb = zstandard.compress(bytes(200 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))

    for plane in (bomb, unsized):
        leaf = bytes([PLANES, 1]) + len(plane).to_bytes(4, "little") + plane + bytes(300)
        with pytest.raises(DecodeError, match="claims other than 100 bytes"):
            decode_chunk(leaf, 100)


@pytest.mark.parametrize(
    "leaf", [b"", b"\x00", b"\x02" + bytes(400), b"\x01\xff" + bytes(400), b"\x01\x01\xff\xff\xff\xff" + bytes(300)]
)
def test_a_leaf_that_begins_wrongly_is_refused(leaf: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_chunk(leaf, 100)


@given(st.data())
def test_a_damaged_leaf_is_an_error_or_other_floats(data: st.DataObject) -> None:
    leaf = bytearray(encode_chunk(GAUSSIAN[:300].tobytes()))
    leaf[data.draw(st.integers(0, 40))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DecodeError):
        assert len(decode_chunk(bytes(leaf), 300)) == 1200


@pytest.mark.parametrize(("data", "width"), [(b"123", 4), (b"1", 2), (b"1234", 3), (bytes(4 * LEAF_ELEMENTS + 4), 4)])
def test_what_is_no_leaf_of_floats_is_the_callers_mistake(data: bytes, width: int) -> None:
    with pytest.raises(UsageError):
        encode_chunk(data, width)
