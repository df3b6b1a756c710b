"""The weighted mean of pushes: what it is, whom it refuses, and that order does not matter."""

import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import UsageError
from legion_p2p.tensor.aggregate import MAX_STEPS_RATIO, WeightedPush, believed_steps, capped_weights, weighted_mean
from legion_p2p.tensor.flatten import digest


def push(source: str, value: list[float], weight: float = 1.0) -> WeightedPush:
    return WeightedPush(source, weight, torch.tensor(value))


def test_the_mean_is_weighted() -> None:
    result = weighted_mean([push("a", [1.0, 2.0], weight=3), push("b", [5.0, -2.0], weight=1)], norm_cap=None)

    assert result.mean.tolist() == [2.0, 1.0]
    assert result.mean.dtype == torch.float32
    assert result.used == ("a", "b")
    assert result.refused == ()


def test_unusable_contributions_are_refused_by_name_and_the_rest_is_averaged() -> None:
    result = weighted_mean(
        [
            push("ok", [4.0, 4.0]),
            push("nan", [math.nan, 0.0]),
            push("inf", [0.0, -math.inf]),
            push("heavy", [1.0, 1.0], weight=math.inf),
            push("minus", [1.0, 1.0], weight=-1),
            push("idle", [1.0, 1.0], weight=0),
            push("odd", [1.0, 1.0], weight=math.nan),
        ],
        norm_cap=2.0,
    )

    assert result.mean.tolist() == [4.0, 4.0]
    assert result.used == ("ok",)
    assert dict(result.refused) == {
        "nan": "value carries NaN or infinity",
        "inf": "value carries NaN or infinity",
        "heavy": "weight inf, must be positive and finite",
        "minus": "weight -1, must be positive and finite",
        "idle": "weight 0, must be positive and finite",
        "odd": "weight nan, must be positive and finite",
    }


def test_nothing_usable_gives_zeros_and_says_so() -> None:
    result = weighted_mean([push("a", [1.0, 1.0], weight=0)], norm_cap=None)

    assert result.mean.tolist() == [0.0, 0.0]
    assert result.used == ()
    assert weighted_mean([], norm_cap=1.0, numel=3).mean.tolist() == [0.0, 0.0, 0.0]
    assert weighted_mean([], norm_cap=1.0).mean.tolist() == []


def test_a_norm_is_limited_to_a_multiple_of_the_median() -> None:
    result = weighted_mean([push("a", [3.0, 4.0]), push("b", [0.0, 5.0]), push("liar", [0.0, 5e30])], norm_cap=2.0)

    assert result.mean.tolist() == pytest.approx([1.0, (4 + 5 + 10) / 3])
    assert result.used == ("a", "b", "liar")


def test_of_two_the_smaller_norm_is_the_measure_and_one_alone_is_never_capped() -> None:
    two = weighted_mean([push("a", [1.0]), push("liar", [1e9])], norm_cap=3.0)
    one = weighted_mean([push("liar", [1e9])], norm_cap=1.0)

    assert two.mean.tolist() == [2.0]
    assert one.mean.tolist() == [1e9]


def test_a_peer_that_changed_nothing_does_not_shrink_the_others() -> None:
    result = weighted_mean([push("idle", [0.0]), push("still", [0.0]), push("busy", [6.0])], norm_cap=1.0)

    assert result.mean.tolist() == [2.0]


def test_the_largest_weights_and_values_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max

    result = weighted_mean([push("a", [largest], weight=1e308), push("b", [largest], weight=1e308)], norm_cap=2.0)

    assert result.mean.tolist() == [largest]


def test_a_mean_that_is_too_large_for_fp32_is_infinite_and_no_warning() -> None:
    result = weighted_mean([push("a", [3e38], weight=1.0), push("b", [3e38], weight=1.0)], norm_cap=None)

    assert result.mean.tolist() == pytest.approx([3e38])

    steps = [WeightedPush("a", 1.0, torch.tensor([3e38]), 1.0), WeightedPush("b", 1.0, torch.tensor([3e38]), 4.0)]
    assert weighted_mean(steps, norm_cap=2.0).mean.tolist() == [math.inf]


def test_the_order_of_arrival_does_not_change_a_bit() -> None:
    g = torch.Generator().manual_seed(1)
    pushes = [WeightedPush(f"peer{i}", 1.0 + i / 7, torch.randn(1003, generator=g) * 10.0**i) for i in range(9)]
    pushes.append(WeightedPush("peer3", pushes[3].weight, torch.randn(1003, generator=g)))  # a late one, too
    expected = digest(weighted_mean(pushes, norm_cap=1.5).mean)

    for seed in range(10):
        random.Random(seed).shuffle(pushes)
        assert digest(weighted_mean(pushes, norm_cap=1.5).mean) == expected


def test_the_order_of_summation_is_that_of_the_names_even_where_it_matters() -> None:
    # fp64 cannot hold 1e30 + 1: only the sum in this order, (1e30 - 1e30) + 3, is not zero
    pushes = [push("a", [1e30]), push("b", [-1e30]), push("c", [3.0])]

    assert {weighted_mean(p, norm_cap=None).mean.item() for p in permutations(pushes)} == {1.0}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 8, 100, 1023])
def test_every_element_counts_in_a_norm(n: int) -> None:
    value = torch.arange(1.0, n + 1)
    capped = weighted_mean([WeightedPush("a", 1.0, torch.ones(n)), WeightedPush("b", 1.0, value)], norm_cap=1.0).mean

    b = capped.double() * 2 - 1
    assert float(b.norm()) == pytest.approx(math.sqrt(n), rel=1e-5)


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    g = torch.Generator().manual_seed(2)
    pushes = [WeightedPush(f"peer{i}", 1.0, torch.randn(300_001, generator=g) * (1 + i)) for i in range(4)]
    before = torch.get_num_threads()

    digests = set()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        digests.add(digest(weighted_mean(pushes, norm_cap=1.2).mean))
    torch.set_num_threads(before)

    assert len(digests) == 1


values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5)


@given(st.lists(st.tuples(values, st.floats(1e-3, 1e6)), min_size=1, max_size=6))
def test_without_a_cap_it_is_what_numpy_computes(pushes: list[tuple[list[float], float]]) -> None:
    result = weighted_mean([push(f"p{i}", v, w) for i, (v, w) in enumerate(pushes)], norm_cap=None)

    expected = np.average([v for v, _ in pushes], axis=0, weights=[w for _, w in pushes])
    np.testing.assert_allclose(result.mean.numpy(), expected, rtol=1e-6, atol=1e-6)


@given(st.lists(values, min_size=1, max_size=6), st.floats(1.0, 4.0))
def test_the_result_is_never_longer_than_the_cap_allows(pushes: list[list[float]], cap: float) -> None:
    result = weighted_mean([push(f"p{i}", v) for i, v in enumerate(pushes)], norm_cap=cap)

    norms = sorted(n for v in pushes if (n := float(np.linalg.norm(v))) > 0)
    limit = cap * norms[(len(norms) - 1) // 2] if norms else 0.0
    assert float(result.mean.double().norm()) <= limit * (1 + 1e-6) + 1e-30


def test_values_of_different_lengths_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(UsageError, match="one length"):
        weighted_mean([push("a", [1.0]), push("b", [1.0, 2.0])], norm_cap=None)
    with pytest.raises(UsageError, match="one length"):
        weighted_mean([push("a", [1.0])], norm_cap=None, numel=2)
    with pytest.raises(UsageError, match=r"float64"):
        weighted_mean([WeightedPush("a", 1.0, torch.zeros(2, dtype=torch.float64))], norm_cap=None)
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="norm_cap"):
            weighted_mean([push("a", [1.0])], norm_cap=cap)


def test_a_claim_of_tokens_counts_as_many_times_the_median_as_the_cap_says() -> None:
    assert capped_weights([100, 100, 120, 10**9], cap=4.0) == (100, 100, 120, 400)
    assert capped_weights([100, 100, 120, 10**9], cap=1.0) == (100, 100, 100, 100)
    assert capped_weights([], cap=1.5) == ()


def test_impossible_claims_neither_move_the_median_nor_are_hidden() -> None:
    weights = capped_weights([math.inf, 0.0, -5.0, 10.0, 1000.0], cap=4.0)

    assert weights == (math.inf, 0.0, -5.0, 10.0, 40.0)
    assert math.isnan(capped_weights([math.nan], cap=4.0)[0])


def test_pushes_of_different_numbers_of_steps_are_compared_as_the_changes_of_one() -> None:
    """Two that made four steps each while two made one: the cap cut the long ones to the length of the short ones."""
    pushes = [
        WeightedPush(name, steps, torch.full((4,), steps), steps)
        for name, steps in zip("abcd", (1.0, 1.0, 4.0, 4.0), strict=True)
    ]

    capped = weighted_mean(pushes, norm_cap=1.0).mean
    as_it_was = weighted_mean([WeightedPush(c.source, c.weight, c.value) for c in pushes], norm_cap=1.0).mean

    torch.testing.assert_close(capped, torch.full((4,), (2 * 1 + 8 * 4) / 10))  # the mean by tokens
    torch.testing.assert_close(as_it_was, torch.ones(4))


def test_a_push_that_is_long_for_its_steps_is_capped_all_the_same() -> None:
    pushes = [WeightedPush(name, 1.0, torch.full((4,), 2.0), 2.0) for name in "abc"]
    long = WeightedPush("d", 1.0, torch.full((4,), 1000.0), 1.0)

    made = weighted_mean([*pushes, long], norm_cap=1.0).mean

    torch.testing.assert_close(made, torch.full((4,), (3 * 2 + 1) / 4))


def test_where_all_are_trusted_steps_do_not_matter() -> None:
    pushes = [WeightedPush("a", 1.0, torch.ones(3), 1.0), WeightedPush("b", 3.0, torch.full((3,), 5.0), 7.0)]

    assert weighted_mean(pushes).mean.tolist() == [4.0] * 3


@pytest.mark.parametrize(
    ("claims", "hostile", "believed"),
    [
        ((10, 10, 10), 0, (10, 10, 10)),
        ((1, 1, 4, 4), 0, (1, 1, 4, 4)),
        ((1, 1, 4, 4), 1, (1, 1, 4, 4)),
        ((5, 5, 5, 5, 10**9), 1, (5, 5, 5, 5, 5)),
        ((5, 5, 5, 10**9), 0, (5, 5, 5, 5 * MAX_STEPS_RATIO)),
        ((1, 100), 0, (1, MAX_STEPS_RATIO)),
        ((7,), 0, (7,)),
    ],
)
def test_claims_of_steps_are_believed_where_enough_others_make_them(
    claims: tuple[int, ...], hostile: int, believed: tuple[float, ...]
) -> None:
    assert believed_steps(claims, hostile) == believed
