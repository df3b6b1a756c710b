"""How a model becomes shards."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.plan import (
    BLOCK_ELEMENTS,
    MAX_SHARD_ELEMENTS,
    MAX_SHARDS,
    MIN_SHARD_ELEMENTS,
    TARGET_SHARDS,
    ParamSpec,
    ShardPlan,
    check_fit,
    plan_for,
)
from legion_p2p.errors import IncompatibleModelError, UsageError

W, B = ParamSpec("w", (3, 4)), ParamSpec("b", (4,))


@settings(max_examples=50)
@given(st.integers(1, 1 << 34), st.integers(0, MAX_SHARD_ELEMENTS))
def test_the_shards_cover_the_model_without_gap_or_overlap(numel: int, shard_elements: int) -> None:
    try:
        plan = plan_for(numel, shard_elements)
    except UsageError:
        assert shard_elements and -(-numel // shard_elements) > MAX_SHARDS
        return

    bounds = [plan.bounds(shard) for shard in range(plan.n_shards)]
    assert bounds[0][0] == 0 and bounds[-1][1] == numel
    assert all(a_end == b_start for (_, a_end), (b_start, _) in pairwise(bounds))
    assert all(0 < plan.size(shard) <= MAX_SHARD_ELEMENTS for shard in range(plan.n_shards))
    assert len({end - start for start, end in bounds[:-1]}) <= 1


@given(st.integers(1, MAX_SHARDS * MAX_SHARD_ELEMENTS))
def test_left_to_itself_it_makes_about_sixteen_shards_of_whole_blocks(numel: int) -> None:
    plan = plan_for(numel)

    assert plan.shard_elements % BLOCK_ELEMENTS == 0
    if numel <= TARGET_SHARDS * MAX_SHARD_ELEMENTS:
        assert plan.n_shards <= TARGET_SHARDS
        if numel >= TARGET_SHARDS * MIN_SHARD_ELEMENTS:
            assert plan.n_shards > TARGET_SHARDS // 2


def test_known_plans() -> None:
    assert plan_for(1) == ShardPlan(1, MIN_SHARD_ELEMENTS) and plan_for(1).n_shards == 1
    assert plan_for(10, 4).bounds(2) == (8, 10)
    assert plan_for(124_000_000).n_shards == 16
    assert plan_for(10, 100).size(0) == 10


def test_a_shard_that_is_not_there_has_no_bounds() -> None:
    plan = plan_for(10, 4)

    for shard in (-1, 3):
        with pytest.raises(UsageError, match="there are 3"):
            plan.bounds(shard)


@pytest.mark.parametrize(
    ("numel", "shard_elements"),
    [(0, 0), (-5, 0), (10, -1), (10, MAX_SHARD_ELEMENTS + 1), (MAX_SHARDS + 1, 1), (MAX_SHARDS * MAX_SHARD_ELEMENTS + 1, 0)],
)
def test_what_cannot_be_cut_is_refused(numel: int, shard_elements: int) -> None:
    with pytest.raises(UsageError):
        plan_for(numel, shard_elements)


def test_the_largest_plan_is_allowed() -> None:
    assert plan_for(MAX_SHARDS * MAX_SHARD_ELEMENTS).n_shards == MAX_SHARDS


def test_a_model_with_the_same_parameters_fits() -> None:
    check_fit([W, B], [ParamSpec("w", (3, 4)), ParamSpec("b", (4,))])


@pytest.mark.parametrize(
    ("ours", "runs", "told"),
    [
        ([W, B], [W, ParamSpec("b", (5,))], r"parameter 1 differs: this model has b \[4\], the run has b \[5\]"),
        ([B, W], [W, B], r"parameter 0 differs"),
        ([W], [W, B], r"1 parameters, the run has 2: only the run has b \[4\]"),
        ([W, B], [W], r"2 parameters, the run has 1: only this model has b \[4\]"),
    ],
)
def test_the_first_parameter_that_differs_is_named(ours: list[ParamSpec], runs: list[ParamSpec], told: str) -> None:
    with pytest.raises(IncompatibleModelError, match=told):
        check_fit(ours, runs)


def test_a_parameter_without_dimensions_has_one_element_and_one_with_a_zero_has_none() -> None:
    assert (ParamSpec("scale", ()).numel, ParamSpec("none", (3, 0)).numel) == (1, 0)
