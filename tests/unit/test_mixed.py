"""Small and one-dimensional tensors dense, the rest sparse, in one body."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.plan import ParamSpec, ShardPlan, dense_ranges
from legion_p2p.errors import CodecError
from legion_p2p.tensor import codec
from legion_p2p.tensor.mixed import Mixed, for_shard

RANGES = ((3, 10), (40, 41), (90, 100))
NUMEL = 100


def mixed() -> Mixed:
    return Mixed(codec.get("int8"), codec.get("fp32"), RANGES, NUMEL)


def test_each_part_is_what_its_codec_makes_of_it() -> None:
    x = torch.randn(NUMEL, generator=torch.Generator().manual_seed(1))

    y = mixed().decode(mixed().encode(x), NUMEL)

    dense = torch.zeros(NUMEL, dtype=torch.bool)
    for a, b in RANGES:
        dense[a:b] = True
    rest = x[~dense].contiguous()
    assert torch.equal(y[dense], x[dense])
    assert torch.equal(y[~dense], codec.get("int8").decode(codec.get("int8").encode(rest), rest.numel()))
    assert len(mixed().encode(x)) * 8 <= mixed().bits_per_element * NUMEL + 8 * (8 + 4 + 8 + 8) + 32


@pytest.mark.parametrize("ranges", [((0, NUMEL),), ((0, 1),), ((99, 100),), ((0, 50), (50, 100))])
def test_ranges_at_the_edges(ranges: tuple) -> None:
    x = torch.arange(NUMEL, dtype=torch.float32)
    both = Mixed(codec.get("fp16"), codec.get("fp32"), ranges, NUMEL)

    assert torch.equal(both.decode(both.encode(x), NUMEL), x)


@given(st.data())
def test_a_body_that_is_not_one_is_refused(data: st.DataObject) -> None:
    good = bytearray(mixed().encode(torch.ones(NUMEL)))
    cut = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(CodecError):
        mixed().decode(bytes(good[:cut]), NUMEL)
    at, value = data.draw(st.integers(0, 11)), data.draw(st.integers(0, 255))
    if good[at] != value:
        good[at] = value
        with pytest.raises(CodecError):
            mixed().decode(bytes(good), NUMEL)


def test_another_length_is_refused_before_anything_is_taken() -> None:
    with pytest.raises(CodecError, match="99 elements, this shard has 100"):
        mixed().decode(mixed().encode(torch.ones(NUMEL)), 99)


def test_no_exception_where_the_main_codec_is_as_dense() -> None:
    fp32, int8 = codec.get("fp32"), codec.get("int8")

    assert for_shard(fp32, int8, RANGES, NUMEL) is fp32
    assert for_shard(int8, fp32, (), NUMEL) is int8
    assert for_shard(int8, None, RANGES, NUMEL) is int8
    assert for_shard(int8, fp32, RANGES, NUMEL).bits_per_element > int8.bits_per_element


def test_the_ranges_follow_from_the_parameters() -> None:
    shapes = {"w": (10, 10), "b": (10,), "g": (5,), "tiny": (2, 2), "v": (11, 9)}
    params = tuple(ParamSpec(name, shape) for name, shape in shapes.items())
    plan = ShardPlan(218, 110)

    assert dense_ranges(params, plan, 0, below=50) == ((100, 110),)
    assert dense_ranges(params, plan, 1, below=50) == ((0, 9),)
    assert dense_ranges(params, plan, 1, below=0) == ((0, 5),)
