"""Who meets whom, how hard both pull, and that both compute the same of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.distance import GROWING, MARGIN, MAX_RATE, DistanceGuard
from legion_p2p.core.matching import epoch_of, partner, patience
from legion_p2p.errors import DecodeError
from legion_p2p.tensor import codec
from legion_p2p.tensor.elastic import pairwise_bound
from legion_p2p.tensor.sync_step import OUTER_REACH, STILL, Known, check_plausible, hear, move, move_at, norm, reach, tell

LABELS = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=9)


@given(LABELS, st.integers(0, 1000), st.integers(0, 15))
def test_all_regions_compute_the_same_matching(labels: set[str], epoch: int, shard: int) -> None:
    met = {label: partner("run", shard, epoch, labels, label) for label in labels}

    assert all(other is None or met[other] == label for label, other in met.items())
    assert all(other != label for label, other in met.items())
    assert sum(other is None for other in met.values()) == len(labels) % 2


def test_over_the_epochs_every_region_meets_every_other_one() -> None:
    labels = ["a", "b", "c", "d", "e"]

    for label in labels:
        assert {partner("run", 0, epoch, labels, label) for epoch in range(200)} - {None} == set(labels) - {label}


def test_the_epoch_does_not_follow_one_liar() -> None:
    honest = {"a": [40, 41, 42], "b": [43, 44], "c": [39, 41]}

    assert epoch_of(honest, 4) == 10
    assert epoch_of({**honest, "a": [40, 41, 42, 1 << 31]}, 4) == 10
    assert epoch_of({**honest, "liar": [1 << 31]}, 4) == 10
    assert epoch_of({}, 4) == 0


def test_one_of_a_pair_begins_and_the_other_only_if_it_does_not() -> None:
    assert patience("a", "b", 4) == 4
    assert patience("b", "a", 4) == 16


def test_the_rate_grows_while_they_drift_apart_and_then_all_is_sent_anew() -> None:
    guard = DistanceGuard(0.2)
    assert guard.rate(1.0) == 0.05

    for distance in (1.0, 0.9, 0.8):
        assert not guard.synced(distance)
    assert guard.rate(1.0) == 0.2

    apart = [guard.synced(1.0 + n) for n in range(2 * GROWING)]
    assert apart == [False] * (2 * GROWING - 1) + [True]
    assert 0.2 < guard.rate(1.0) <= MAX_RATE
    for _ in range(3):
        guard.synced(1.0)
    assert guard.rate(1.0) == 0.2


@given(st.integers(0, 10))
def test_the_rate_is_below_the_bound_for_the_staleness_seen(staleness: int) -> None:
    guard = DistanceGuard(0.5)
    for _ in range(4):
        guard.synced(1.0)

    assert guard.rate(pairwise_bound(staleness)) <= MARGIN * pairwise_bound(staleness)


@pytest.mark.parametrize("rule", ["elastic", "center", "nesterov"])
@pytest.mark.parametrize("name", ["int8", "topk64-2bit"])
def test_both_know_the_same_bits_and_come_together(rule: str, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    mean, apart = (a + b) / 2, torch.dist(a, b)
    sparse = name.startswith("topk")
    at_a: Known | None = None
    at_b: Known | None = None
    for _ in range(60 if sparse else 20):
        chosen = codec.get("bf16" if at_a is None else name)
        data_a, a_told = tell(a, at_a, chosen)
        data_b, b_told = tell(b, at_b, chosen)
        moved_a = move(a_told, hear(data_b, at_a, 1000, chosen), at_a, rule, 0.3, True)
        moved_b = move(b_told, hear(data_a, at_b, 1000, chosen), at_b, rule, 0.3, False)

        assert moved_a.digest == moved_b.digest
        if rule != "nesterov":
            assert torch.equal(moved_a.step_N, -moved_b.step_N)
        a, b, at_a, at_b = a - moved_a.step_N, b - moved_b.step_N, moved_a.known, moved_b.known

    assert torch.dist(a, b) < (0.5 if sparse else 0.05) * apart
    assert torch.allclose((a + b) / 2, mean, atol=1e-5 if rule != "nesterov" else 0.2)


@pytest.mark.parametrize("rule", ["elastic", "center", "nesterov"])
def test_neither_goes_further_than_the_limit_and_both_still_move_alike(rule: str) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(1000, generator=generator), 100 * torch.randn(1000, generator=generator)
    moved_a = move(a, b, None, rule, 0.3, True, limit=2.0)
    assert moved_a.slowed_to is not None
    moved_b = move_at(b, a, moved_a.slowed_to, False, slowed=True)

    # as long as three changes only where there is a momentum
    assert norm(moved_a.step_N) == pytest.approx(2.0 if rule != "nesterov" else 2.0 / OUTER_REACH)
    assert torch.equal(moved_a.step_N, -moved_b.step_N)
    assert moved_a.digest == moved_b.digest
    assert move(a, b, None, rule, 0.3, True, limit=1e4).slowed_to is None
    assert move(a, a, None, rule, 0.3, True, limit=0.0).slowed_to is None


def test_a_slowed_outer_step_begins_its_momentum_anew() -> None:
    at = Known(torch.zeros(4), torch.zeros(4), torch.zeros(4), torch.ones(4))

    moved = move(torch.ones(4), 50 * torch.ones(4), at, "nesterov", 0.3, True, limit=1.0)

    assert moved.known.anchor_N is None and moved.known.momentum_N is None
    assert norm(moved.step_N) == pytest.approx(1.0)


def test_what_training_alone_moves_decides_how_far_a_meeting_may() -> None:
    own = torch.full((100,), 0.1)  # norm 1

    assert reach(own, 2.0, 3.0, "elastic") == 6.0
    assert reach(own, 0.0, 3.0, "elastic") == pytest.approx(STILL)
    assert reach(own, 2.0, 3.0, "nesterov") == 18.0
    assert reach(own, 2.0, 0.0, "elastic") is None


def test_a_copy_that_cannot_be_of_the_same_run_is_refused() -> None:
    own = torch.full((100,), 0.1)

    check_plausible(9 * own, own, 0.0)
    check_plausible(99 * own, own, 10.0)
    check_plausible(99 * own, torch.zeros(100), 0.0)  # nothing was trained here yet: there is no measure
    with pytest.raises(DecodeError, match="norm 11"):
        check_plausible(11 * own, own, 0.0)


def epochs_until_all_know(n_regions: int, shard: int, first: int) -> int:
    """How many epochs after `first` the news of one region has reached all."""
    labels = [f"region-{i}" for i in range(n_regions)]
    known, epoch = {labels[shard % n_regions]}, first
    while len(known) < n_regions:
        met = {label: partner("run", shard, epoch, labels, label) for label in labels}
        known |= {other for label, other in met.items() if label in known and other is not None}
        epoch += 1
    return epoch - first


@pytest.mark.parametrize("n_regions", [2, 6, 20, 32])
def test_news_of_a_region_reach_all_in_the_logarithm_of_their_number(n_regions: int) -> None:
    n_epochs = math.ceil(math.log2(n_regions))

    assert {epochs_until_all_know(n_regions, shard, shard * n_epochs) for shard in range(10)} == {n_epochs}


@given(st.integers(2, 24), st.integers(0, 99), st.integers(0, 99))
def test_news_that_come_at_any_time_reach_all_in_two_cycles_and_a_bit(n_regions: int, shard: int, first: int) -> None:
    assert epochs_until_all_know(n_regions, shard, first) <= 2 * math.ceil(math.log2(n_regions)) + 3
