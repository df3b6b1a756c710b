"""Aggregation rules that hold where some of those who push are hostile."""

import random
from collections.abc import Callable
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.core.round_spec import COORDINATE_RULES, AggregationRule
from legion_p2p.errors import UsageError
from legion_p2p.tensor.aggregate import WeightedPush
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.robust import rules
from legion_p2p.tensor.robust.geometry import Group, squared_distances
from legion_p2p.tensor.robust.rules import MAX_COMPARED, Rule, aggregate, n_hostile

NUMEL = 40
LARGEST = float(torch.finfo(torch.float32).max)
SHARE = 0.2
ROBUST = [name for name in rules.names() if name != "mean"]
BEYOND_CAPS = [name for name in ROBUST if name != "norm-cap"]
Vectors = np.ndarray


def pushes_of(x_PN: Vectors, weights: list[float] | None = None) -> list[WeightedPush]:
    weights = weights or [1.0] * len(x_PN)
    return [
        WeightedPush(f"p{i:04}", w, torch.tensor(x, dtype=torch.float32))
        for i, (x, w) in enumerate(zip(x_PN, weights, strict=True))
    ]


def result_of(
    name: str, x_PN: Vectors, weights: list[float] | None = None, cap: float | None = None, share: float = SHARE
) -> Vectors:
    return aggregate(pushes_of(x_PN, weights), Rule(name, cap, share)).mean.double().numpy()


def alike(seed: int, n: int, numel: int = NUMEL, spread: float = 1.0) -> Vectors:
    """What honest members push: a common direction, and their own noise."""
    rng = np.random.default_rng(seed)
    x_PN = rng.normal(size=numel) + spread * rng.normal(size=(n, numel))
    return x_PN.astype(np.float32).astype(np.float64)


# as written down in the papers, one after another, without a thought of speed


def median_of_paper(x_PN: Vectors, f: int) -> Vectors:
    return np.median(x_PN, axis=0)


def trimmed_mean_of_paper(x_PN: Vectors, f: int) -> Vectors:
    return np.sort(x_PN, axis=0)[f : len(x_PN) - f].mean(axis=0)


def krum_scores(x_PN: Vectors, f: int) -> list[float]:
    n = len(x_PN)
    scores = []
    for i in range(n):
        near = sorted(float(((x_PN[i] - x_PN[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(near[: max(1, n - f - 2)]))
    return scores


def krum_of_paper(x_PN: Vectors, f: int) -> Vectors:
    return x_PN[int(np.argmin(krum_scores(x_PN, f)))]


def multi_krum_of_paper(x_PN: Vectors, f: int) -> Vectors:
    return x_PN[np.argsort(krum_scores(x_PN, f), kind="stable")[: len(x_PN) - f]].mean(axis=0)


def bulyan_of_paper(x_PN: Vectors, f: int) -> Vectors:
    left, chosen = list(x_PN), []
    while len(chosen) < len(x_PN) - 2 * f:
        best = int(np.argmin(krum_scores(np.array(left), f))) if len(left) > 1 else 0
        chosen.append(left.pop(best))
    out = np.zeros(x_PN.shape[1])
    for i in range(x_PN.shape[1]):
        column = sorted(float(x[i]) for x in chosen)
        middle = float(np.median(column))
        out[i] = np.mean(sorted(column, key=lambda value: abs(value - middle))[: len(chosen) - 2 * f])
    return out


def geometric_median_of_paper(x_PN: Vectors, f: int, weight_P: Vectors | None = None) -> Vectors:
    weight_P = np.ones(len(x_PN)) if weight_P is None else weight_P
    center = np.average(x_PN, axis=0, weights=weight_P)
    for _ in range(3000):
        pull = weight_P / np.maximum(np.linalg.norm(x_PN - center, axis=1), 1e-9)
        center = (pull[:, None] * x_PN).sum(axis=0) / pull.sum()
    return center


def nearest_neighbours_of_paper(x_PN: Vectors, f: int) -> Vectors:
    if f == 0:  # the paper's rule would be the mean, and one of three or four could move it as it likes
        return geometric_median_of_paper(x_PN, f)
    mixed = []
    for x in x_PN:
        nearest = np.argsort(np.linalg.norm(x_PN - x, axis=1), kind="stable")[: len(x_PN) - f]
        mixed.append(x_PN[nearest].mean(axis=0))
    return geometric_median_of_paper(np.array(mixed), f)


PAPERS: dict[str, Callable[[Vectors, int], Vectors]] = {
    "median": median_of_paper,
    "trimmed-mean": trimmed_mean_of_paper,
    "krum": krum_of_paper,
    "multi-krum": multi_krum_of_paper,
    "bulyan": bulyan_of_paper,
    "geometric-median": geometric_median_of_paper,
    "nearest-neighbours": nearest_neighbours_of_paper,
}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 11, 20])
@pytest.mark.parametrize("name", PAPERS)
def test_each_rule_is_what_its_paper_says(name: str, n: int) -> None:
    for seed in range(3):
        x_PN = alike(seed, n)

        expected = PAPERS[name](x_PN, n_hostile(Rule(name, None, SHARE), n))

        np.testing.assert_allclose(result_of(name, x_PN), expected, atol=2e-3)


def test_centered_clipping_is_what_its_paper_says_where_there_are_no_pairs_to_form() -> None:
    x_PN = alike(3, 2)
    center = np.zeros(NUMEL)
    for _ in range(3):
        distance = np.linalg.norm(x_PN - center, axis=1)
        clipped = (x_PN - center) * np.minimum(1, distance.min() / distance)[:, None]
        center = center + clipped.mean(axis=0)

    np.testing.assert_allclose(result_of("centered-clip", x_PN), center, atol=1e-4)


def test_centered_clipping_averages_pairs_first() -> None:
    x_PN = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])

    result = result_of("centered-clip", x_PN)

    def clipped(points: Vectors, weights: Vectors) -> Vectors:
        center = np.zeros(2)
        for _ in range(3):
            distance = np.linalg.norm(points - center, axis=1)
            radius = np.sort(distance)[(len(points) - 1) // 2]
            factor = np.where(distance > radius, radius / np.maximum(distance, 1e-30), 1.0)
            center = center + ((points - center) * (factor * weights / weights.sum())[:, None]).sum(axis=0)
        return center

    possible = [
        clipped(np.array([(x_PN[i] + x_PN[j]) / 2, x_PN[({0, 1, 2} - {i, j}).pop()]]), np.array([2.0, 1.0]))
        for i, j in combinations(range(3), 2)
    ]
    assert any(np.allclose(result, p, atol=1e-4) for p in possible)


@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum", "geometric-median", "nearest-neighbours", "norm-cap"])
def test_weights_count_among_pushes_that_are_kept(name: str) -> None:
    x_PN = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    result = result_of(name, x_PN, weights=[1.4, 1.0, 1.0], share=0.0)

    assert result[0] > 1.05 * max(result[1], result[2]) > 0


def test_the_geometric_median_with_weights_is_the_one_of_so_many_copies() -> None:
    x_PN = alike(5, 4)

    weighted = result_of("geometric-median", x_PN, weights=[2.0, 1.0, 1.0, 1.0])

    np.testing.assert_allclose(weighted, geometric_median_of_paper(x_PN[[0, 0, 1, 2, 3]], 0), atol=1e-3)


@pytest.mark.parametrize("name", ROBUST)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_arrival_does_not_change_a_bit(name: str, seed: int, n: int, shuffle: random.Random) -> None:
    pushes = pushes_of(alike(seed, n), [1.0 + i / 7 for i in range(n)])
    expected = digest(aggregate(pushes, Rule(name)).mean)

    shuffle.shuffle(pushes)

    assert digest(aggregate(pushes, Rule(name)).mean) == expected


@pytest.mark.parametrize("name", ROBUST)
def test_the_number_of_threads_does_not_change_a_bit(name: str) -> None:
    pushes = pushes_of(alike(1, 9, numel=70_001))
    before = torch.get_num_threads()

    digests = set()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        digests.add(digest(aggregate(pushes, Rule(name)).mean))
    torch.set_num_threads(before)

    assert len(digests) == 1


def test_the_bits_are_those_that_every_machine_gets() -> None:
    """Recorded once: another processor, library or number of threads has to come to the same."""
    x_PN = np.outer(np.cos(np.arange(8.0)), np.ones(33)).round(3) + np.sin(np.arange(8 * 33.0)).round(3).reshape(8, 33) / 4
    pushes = pushes_of(x_PN, [1.0 + i / 8 for i in range(8)])

    seen = {name: digest(aggregate(pushes, Rule(name)).mean).hex()[:12] for name in rules.names()}

    assert seen == RECORDED


RECORDED = {
    "mean": "4c8cc91f4aed",
    "norm-cap": "fe6fa5188a2b",
    "krum": "4c0249bb5fec",
    "multi-krum": "e3925af67c9e",
    "geometric-median": "65b20f3ff7cd",
    "centered-clip": "1d2b5560a607",
    "nearest-neighbours": "a66adc4922e6",
    "median": "2b83687f637a",
    "trimmed-mean": "04cc2eaa08c2",
    "bulyan": "6b50e40fefbb",
}


@pytest.mark.parametrize("name", [name for name in ROBUST if name != "centered-clip"])  # it forms other pairs
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), exponent=st.integers(-20, 20))
@settings(max_examples=25, deadline=None)
def test_twice_the_pushes_give_twice_the_result_to_the_bit(name: str, seed: int, n: int, exponent: int) -> None:
    x_PN = alike(seed, n)

    assert (result_of(name, x_PN * 2.0**exponent, cap=1.0) == 2.0**exponent * result_of(name, x_PN, cap=1.0)).all()


@pytest.mark.parametrize("name", PAPERS)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_without_caps_all_that_is_moved_alike_moves_the_result_as_far(name: str, seed: int, n: int) -> None:
    x_PN = alike(seed, n)
    shift = np.random.default_rng(seed + 1).normal(size=NUMEL).astype(np.float32).astype(np.float64)

    moved = result_of(name, (x_PN + shift).astype(np.float32).astype(np.float64))

    np.testing.assert_allclose(moved, result_of(name, x_PN) + shift, atol=2e-3)


hostile_values = st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=NUMEL, max_size=NUMEL)


@pytest.mark.parametrize("name", ROBUST)
@given(seed=st.integers(0, 2**31), hostile=st.lists(hostile_values, min_size=2, max_size=2), copies=st.booleans())
@settings(max_examples=25, deadline=None)
def test_two_of_ten_move_no_result_beyond_what_the_others_pushed(
    name: str, seed: int, hostile: list[list[float]], copies: bool
) -> None:
    honest = alike(seed, 8)
    attack = np.array([hostile[0], hostile[0 if copies else 1]])

    result = result_of(name, np.concatenate([honest, attack]), cap=1.0)

    if name in COORDINATE_RULES:
        shortest_allowed = np.minimum(honest.min(axis=0), 0) * (1 + 1e-6)  # a cap makes pushes shorter
        assert (shortest_allowed <= result).all() and (result <= np.maximum(honest.max(axis=0), 0) * (1 + 1e-6)).all()
    else:
        assert float(np.linalg.norm(result)) <= float(np.linalg.norm(honest, axis=1).max()) * (1 + 1e-5)


@pytest.mark.parametrize("name", [name for name in BEYOND_CAPS if name not in ("krum", "centered-clip")])
@given(seed=st.integers(0, 2**31), strength=st.floats(0.1, 1e6))
@settings(max_examples=25, deadline=None)
def test_two_of_ten_against_the_mean_do_not_turn_it_around(name: str, seed: int, strength: float) -> None:
    honest = alike(seed, 8, spread=0.7)
    mean = honest.mean(axis=0)

    result = result_of(name, np.concatenate([honest, -strength * mean[None], -strength * mean[None]]), cap=1.0)

    cosine = float(result @ mean / np.linalg.norm(result) / np.linalg.norm(mean))
    assert cosine > 0.9
    assert float(result @ mean) > 0.5 * float(mean @ mean)


@given(seed=st.integers(0, 2**31), hostile=st.lists(hostile_values, min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_four_of_ten_move_the_geometric_median_no_further_than_its_bound(seed: int, hostile: list[list[float]]) -> None:
    honest = alike(seed, 6)
    center = honest.mean(axis=0)

    result = result_of("geometric-median", np.concatenate([honest, np.array(hostile)]), cap=1.0)

    # Pillutla et al., lemma 9: 2 (1 - a) / (1 - 2 a) times the furthest honest one, for a share a of hostile weight
    furthest = max(np.linalg.norm(honest - center, axis=1).max(), np.linalg.norm(honest, axis=1).max())
    assert np.linalg.norm(result - center) <= 2 * 0.6 / 0.2 * furthest


@pytest.mark.parametrize("name", rules.names())
def test_one_push_alone_is_the_result(name: str) -> None:
    x_PN = alike(2, 1)

    np.testing.assert_array_equal(result_of(name, x_PN, cap=1.0), x_PN[0])


@pytest.mark.parametrize("name", rules.names())
def test_equal_pushes_are_the_result_and_zeros_are_too(name: str) -> None:
    same = np.tile(alike(2, 1), (7, 1))

    np.testing.assert_allclose(result_of(name, same, cap=1.0), same[0], rtol=1e-6)
    assert not result_of(name, 0 * same, cap=1.0).any()


@pytest.mark.parametrize("name", rules.names())
def test_what_is_unusable_is_refused_by_name_and_the_rest_counts(name: str) -> None:
    good = pushes_of(alike(4, 6))
    bad = [WeightedPush("nan", 1.0, torch.full((NUMEL,), float("nan"))), WeightedPush("nothing", 0.0, torch.ones(NUMEL))]

    result = aggregate(good + bad, Rule(name))

    assert [source for source, _ in result.refused] == ["nan", "nothing"]
    assert result.used == tuple(c.source for c in good)
    assert digest(result.mean) == digest(aggregate(good, Rule(name)).mean)


@pytest.mark.parametrize("name", rules.names())
def test_no_push_at_all_gives_zeros(name: str) -> None:
    result = aggregate([], Rule(name), NUMEL)

    assert (result.used, result.mean.tolist()) == ((), [0.0] * NUMEL)


def test_copies_of_one_push_count_as_one() -> None:
    others = alike(6, 6)
    copied = np.concatenate([others, np.tile(others[:1] * -1, (2, 1))])

    once = result_of("nearest-neighbours", copied[:-1], share=0.0)
    twice = result_of("nearest-neighbours", copied, share=0.0)

    np.testing.assert_allclose(once, twice, atol=1e-4)


def test_sparse_pushes_of_two_that_differ_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    x_PN = np.zeros((8, 4096))
    for row in x_PN:
        row[rng.choice(4096, 64, replace=False)] = rng.choice([-1.0, 1.0], 64)

    np.testing.assert_allclose(result_of("nearest-neighbours", x_PN, share=0.0), result_of("geometric-median", x_PN), atol=1e-6)


def test_more_pushes_than_are_compared_are_averaged_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_COMPARED", 8)
    x_PN = alike(7, 21)
    seen = []

    def watched(values: list[Tensor], groups: list[Group]) -> Vectors:
        seen.append([len(group.members) for group in groups])
        return squared_distances(values, groups)

    monkeypatch.setattr(rules, "squared_distances", watched)

    result = result_of("geometric-median", x_PN, cap=None)

    assert seen == [[3] * 7]
    assert np.linalg.norm(result - x_PN.mean(axis=0)) < 0.3 * np.linalg.norm(x_PN.mean(axis=0))
    shuffled = pushes_of(x_PN)
    random.Random(1).shuffle(shuffled)
    np.testing.assert_array_equal(aggregate(shuffled, Rule("geometric-median", None)).mean.double().numpy(), result)


def test_the_limit_on_comparisons_is_not_beyond_what_a_round_can_wait_for() -> None:
    assert 2 * MAX_COMPARED**2 * 10_000 < 2e9  # FLOP


def test_distances_are_exact_where_values_are_whole_steps() -> None:
    rng = np.random.default_rng(1)
    x_PN = rng.integers(-1000, 1000, size=(5, 40_000)).astype(np.float64)
    x_PN[0, 0] = 2.0**16
    groups = [Group((i,), (1.0,), 1.0) for i in range(5)]

    apart = squared_distances([torch.tensor(x, dtype=torch.float32) for x in x_PN], groups)

    with_origin = np.concatenate([x_PN, np.zeros((1, 40_000))])
    expected = ((with_origin[:, None] - with_origin[None]) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(apart, expected)


@pytest.mark.parametrize("numel", [0, 1, 16_384, 16_385, 50_000])
def test_every_element_counts_in_a_distance(numel: int) -> None:
    x_PN = alike(8, 3, numel=numel)

    apart = squared_distances([torch.tensor(x, dtype=torch.float32) for x in x_PN], [Group((i,), (1.0,), 1.0) for i in range(3)])

    np.testing.assert_allclose(apart[:3, :3], ((x_PN[:, None] - x_PN[None]) ** 2).sum(axis=-1), rtol=1e-3, atol=1e-4)


def test_the_specification_names_the_rules_that_there_are() -> None:
    assert set(get_args(AggregationRule)) == set(rules.names())
    assert set(COORDINATE_RULES) == set(rules.BY_COORDINATE)


def test_a_rule_that_does_not_exist_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(UsageError, match="allowed are mean, norm-cap"):
        aggregate([], Rule("best"), 1)


@pytest.mark.parametrize(
    ("name", "n", "expected"), [("krum", 5, 1), ("krum", 4, 0), ("bulyan", 7, 1), ("bulyan", 6, 0), ("median", 100, 29)]
)
def test_no_rule_takes_more_for_hostile_than_it_is_made_for(name: str, n: int, expected: int) -> None:
    assert n_hostile(Rule(name, None, 0.29 if n == 100 else 0.45), n) == expected
