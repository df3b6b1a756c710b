"""How many local steps fit between two pushes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.pace import MAX_SPEEDUP, Ewma, at_least, local_steps, ramped, run_step, while_joined

seconds = st.floats(0, 1e15, allow_subnormal=True)


def test_a_peer_of_median_speed_does_the_steps_of_the_run() -> None:
    assert local_steps(10, 0.5, [0.25, 1.0]) == 10


def test_a_faster_one_does_more_and_a_slower_one_fewer_so_that_all_take_equally_long() -> None:
    assert local_steps(10, 0.25, [0.5, 0.5]) == 20
    assert local_steps(10, 1.0, [0.5, 0.5]) == 5


def test_the_slowest_does_at_least_one_and_the_fastest_at_most_eight_times_as_many() -> None:
    assert local_steps(10, 1000.0, [0.5, 0.5]) == 1
    assert local_steps(10, 1e-9, [0.5, 0.5]) == 80


def test_who_has_measured_nothing_or_is_alone_does_the_steps_of_the_run() -> None:
    assert local_steps(10, 0.0, [0.5, 0.5]) == 10
    assert local_steps(10, 0.5, []) == 10
    assert local_steps(10, 0.5, [0.0, 0.0]) == 10


@given(st.integers(1, 100_000), seconds, st.lists(seconds, max_size=20))
def test_whatever_others_claim_it_stays_within_bounds(reference: int, own: float, others: list[float]) -> None:
    assert 1 <= local_steps(reference, own, others) <= MAX_SPEEDUP * reference


@given(st.floats(1e-3, 1e3), st.floats(0, 1e15), st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_a_single_liar_cannot_move_the_median_beyond_what_honest_peers_measured(
    own: float, lie: float, others: list[float]
) -> None:
    honest = [own, *others]

    steps = local_steps(100, own, [*others, lie])

    slowest, fastest = local_steps(100, own, [max(honest)] * 3), local_steps(100, own, [min(honest)] * 3)
    assert fastest <= steps <= slowest


def test_a_smoothed_value_begins_with_the_first_and_follows_the_rest() -> None:
    mean = Ewma(0.5)

    assert mean.value is None
    assert [mean.add(v) for v in (4.0, 8.0, 8.0)] == [4.0, 6.0, 7.0]
    assert mean.value == pytest.approx(7.0)


def test_a_run_bounds_local_steps_from_both_sides() -> None:
    """As 30 of a median peer, 8 to 120 of others (2401.09135 lets them follow the speed)."""
    assert local_steps(30, 1.0, [0.1, 0.1], least=8, most=120) == 8
    assert local_steps(30, 0.01, [0.1, 0.1], least=8, most=120) == 120
    assert local_steps(30, 0.05, [0.1, 0.1], least=8, most=120) == 60


def test_local_steps_ramp_up_by_equal_factors_and_end_at_the_runs() -> None:
    steps = [ramped(1, 64, 600, at) for at in (0, 100, 200, 300, 400, 500, 599, 600, 10_000)]

    assert steps == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert ramped(1, 10, 0, 0) == 10


def test_a_ramp_makes_no_round_too_short_for_the_steps_of_the_members() -> None:
    assert at_least(1, 5, [1.0, 2.0]) == 1
    assert at_least(1, 5, [0.03, 0.04, 9.0]) == 3
    assert at_least(1, 5, [0.001]) == 5  # and none longer than the run's
    assert at_least(1, 5, []) == at_least(1, 5, [0.0]) == 1
    assert at_least(5, 5, [0.001]) == 5


def test_a_lone_peer_makes_a_version_in_ten_seconds_while_another_one_joins_of_which_nothing_is_known() -> None:
    assert while_joined(5, 0.1, 200) == 100
    assert while_joined(5, 0.1, 50) == 50  # as the run allows
    assert while_joined(5, 30.0, 200) == 5  # its rounds are long enough
    assert while_joined(5, 0.0, 200) == 5  # nothing is measured yet


def test_the_step_of_the_run_is_the_own_count_or_what_most_others_announce() -> None:
    assert run_step(7, []) == 7
    assert run_step(7, [3, 5]) == 7
    assert run_step(7, [9, 10, 11]) == 10


def test_one_that_announces_a_huge_step_is_not_believed() -> None:
    assert run_step(7, [9, 1 << 60]) == 9
    assert run_step(7, [1 << 60, 9, 10]) == 10
