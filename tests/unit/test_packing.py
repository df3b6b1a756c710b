"""Numbers of few bits, and Rice-coded gaps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import CodecError
from legion_p2p.tensor import packing

gap_lists = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 4095)), max_size=80)


def stream_of(gaps: list[int]) -> tuple[int, memoryview]:
    b, remainders, quotients = packing.rice(torch.tensor(gaps, dtype=torch.int16))
    return b, memoryview(bytes(remainders.tolist() + quotients.tolist()))


@given(width=st.integers(0, 16), n=st.integers(0, 70), seed=st.integers(0, 99))
def test_numbers_come_back_from_as_many_bytes_as_promised(width: int, n: int, seed: int) -> None:
    numbers = torch.randint(0, 2**width, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)

    packed = packing.pack(numbers, width)

    assert packed.dtype == torch.uint8 and len(packed) == packing.packed_bytes(n, width)
    assert len(packed) < n * width / 8 + 4
    assert packing.unpack(packed, width, n).tolist() == numbers.tolist()


@pytest.mark.parametrize(("width", "n"), [(1, 9), (2, 5), (4, 1), (7, 3)])
def test_padding_is_zero(width: int, n: int) -> None:
    packed = packing.pack(torch.zeros(n, dtype=torch.uint8), width)
    packed[-1] |= 0x80

    with pytest.raises(CodecError, match="padding"):
        packing.unpack(packed, width, n)


@given(gaps=gap_lists)
def test_gaps_come_back(gaps: list[int]) -> None:
    b, stream = stream_of(gaps)

    assert len(stream) <= packing.most_rice_bytes(len(gaps), b, sum(gaps))
    assert packing.read_rice(stream, b, len(gaps)).tolist() == gaps


@given(gaps=gap_lists)
def test_no_other_parameter_would_take_fewer_bits(gaps: list[int]) -> None:
    b, _ = stream_of(gaps)

    costs = [len(gaps) * (c + 1) + sum(gap >> c for gap in gaps) for c in range(packing.PLAIN)] + [packing.PLAIN * len(gaps)]
    assert costs[b] == min(costs)


def test_long_gaps_are_written_plainly() -> None:
    b, stream = stream_of([4095, 2048, 3000])

    assert b == packing.PLAIN
    assert len(stream) == 3 + 2  # 8 bits and 4 bits of each


@pytest.mark.parametrize("k", [16, 64, 128, 700])
def test_random_indices_take_a_tenth_of_a_bit_above_the_entropy(k: int) -> None:
    n_chunks = 600
    random = torch.rand(n_chunks, 4096, generator=torch.Generator().manual_seed(k))
    index = random.topk(k, dim=1).indices.sort(dim=1).values
    gaps = (index.diff(dim=1, prepend=torch.full((n_chunks, 1), -1)) - 1).flatten()

    _, remainders, quotients = packing.rice(gaps)

    bits = 8 * (len(remainders) + len(quotients)) / len(gaps)
    rate = k / 4096
    entropy = -(rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate)) / rate  # of independent choices, 7.43 at k = 64
    subsets = (math.lgamma(4097) - math.lgamma(k + 1) - math.lgamma(4097 - k)) / math.log(2) / k  # of k in 4096, 7.364 at k = 64
    assert subsets < bits < entropy + 0.1
    if k == 64:
        assert bits < 7.58


@pytest.mark.parametrize(
    ("b", "stream", "n", "why"),
    [
        (0, "03", 3, "2 indices"),  # 1 1
        (0, "03", 1, "2 indices"),
        (0, "0300", 2, "after the last"),
        (0, "01", 0, "1 indices"),
        (0, "00", 0, "after the last"),
        (3, "", 1, "remainders"),
        (12, "01", 1, "remainders"),
        (12, "010001", 1, "remainders"),
        (11, "ffff 0700 04", 1, "padding"),
        (11, "ff0300 04", 1, "beyond"),  # a quotient of 2 is 4096
    ],
)
def test_a_stream_that_is_no_code_is_refused(b: int, stream: str, n: int, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        packing.read_rice(memoryview(bytes.fromhex(stream)), b, n)
