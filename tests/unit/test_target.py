"""A run's target, and how long it will take to come to it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.eta import EVERY_S, MAX_ETA_S, MIN_PIECE_S, PIECES, WINDOW_S, EtaEstimator, TimeLeft
from legion_p2p.core.target import HOLD_S, RunProgress, RunTarget, TargetWatch


def test_steps_and_tokens_are_reached_when_the_run_is_there() -> None:
    steps, tokens = TargetWatch(RunTarget(steps=1000)), TargetWatch(RunTarget(tokens=10**9))

    assert not steps.look(RunProgress(step=999), [], 0.0) and steps.look(RunProgress(step=1000), [], 1.0)
    assert steps.reason == "the run has made its 1,000 steps"
    assert not tokens.look(RunProgress(tokens=10**9 - 1), [], 0.0) and tokens.look(RunProgress(tokens=10**9), [], 0.0)


def test_a_loss_is_reached_once_the_median_of_the_members_has_stayed_there() -> None:
    watch = TargetWatch(RunTarget(loss=2.0))

    assert not watch.look(RunProgress(losses=(1.9, 1.8, 5.0)), [], 0.0)
    assert not watch.look(RunProgress(losses=(1.9, 2.1, 2.1)), [], HOLD_S)  # not any more: the time begins again
    assert not watch.look(RunProgress(losses=(1.9,)), [], HOLD_S + 1)
    assert not watch.look(RunProgress(losses=(1.9,)), [], 2 * HOLD_S)
    assert watch.look(RunProgress(losses=(1.9,)), [], 2 * HOLD_S + 1)


def test_who_sees_it_late_follows_most_of_the_others_and_no_single_one() -> None:
    watch = TargetWatch(RunTarget(loss=2.0))

    assert not watch.look(RunProgress(), [True], 0.0)
    assert not watch.look(RunProgress(), [True, True, False, False], 0.0)
    assert watch.look(RunProgress(), [True, True, False], 0.0)


def test_how_much_of_a_run_is_over_follows_from_the_target_that_it_is_nearer_to() -> None:
    both = RunTarget(steps=1000, tokens=4000)

    assert [both.done(250, 0), both.done(250, 2000), both.done(2000, 0)] == [0.25, 0.5, 1.0]
    assert RunTarget(loss=2.0).done(10**6, 10**9) == RunTarget().done(10**6, 10**9) == 0.0


@given(st.integers(0, 10**9), st.integers(0, 10**15), st.lists(st.booleans(), max_size=9))
def test_a_run_without_a_target_never_ends_whatever_others_say(step: int, tokens: int, others: list[bool]) -> None:
    watch = TargetWatch(RunTarget())

    assert not watch.look(RunProgress(step, tokens, (0.0,)), others, 1e9)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20))
def test_what_was_reached_stays_reached(steps: list[int]) -> None:
    watch, was = TargetWatch(RunTarget(steps=1000)), False

    for now, step in enumerate(steps):
        is_there = watch.look(RunProgress(step=step), [], float(now))
        assert is_there or not was
        was = is_there


# how long it will take


def counted(rates: list[float], piece_s: float = 60.0) -> EtaEstimator:
    """A count that grows at these rates, each for `piece_s`."""
    eta, now, value = EtaEstimator(), 0.0, 0.0
    eta.count(value, now)
    for rate in rates:
        for _ in range(int(piece_s / EVERY_S)):
            now, value = now + EVERY_S, value + rate * EVERY_S
            eta.count(value, now)
    return eta


def test_at_a_steady_rate_the_range_is_a_point() -> None:
    left = counted([10.0] * PIECES).left(10.0 * 60 * PIECES + 1000)

    assert left is not None and left.least_s == pytest.approx(100.0) and left.most_s == pytest.approx(100.0)


def test_the_slowest_and_the_fastest_piece_bound_it() -> None:
    left = counted([10.0, 5.0, 20.0, 10.0]).left(45.0 * 60 + 1000)

    assert left == TimeLeft(pytest.approx(50.0), pytest.approx(200.0))


def test_it_is_unknown_after_too_short_a_time_or_where_nothing_moves_or_it_would_take_for_ever() -> None:
    assert EtaEstimator().left(10) is None
    assert counted([10.0], MIN_PIECE_S * PIECES - EVERY_S).left(10**6) is None
    assert counted([10.0, 0.0, 10.0, 10.0]).left(10**6) is None
    assert counted([1e-9] * PIECES).left(MAX_ETA_S) is None


def test_members_that_left_long_ago_do_not_count_and_a_corrected_count_begins_again() -> None:
    eta = counted([100.0, *[10.0] * PIECES], WINDOW_S / PIECES)
    left = eta.left(1e9)
    assert left is not None and left.least_s == pytest.approx(left.most_s, rel=0.02)

    eta.count(1.0, 10 * WINDOW_S)
    assert eta.left(1e9) is None


@given(st.lists(st.floats(0.1, 1000.0), min_size=PIECES, max_size=8), st.floats(1.0, 1e6))
def test_the_time_that_the_mean_rate_takes_lies_in_the_range(rates: list[float], more: float) -> None:
    eta = counted(rates)
    total = sum(rate * 60.0 for rate in rates)

    left = eta.left(total + more)

    if left is not None:
        assert 0 < left.least_s <= left.most_s < math.inf
        mean = total / (60.0 * len(rates))
        assert left.least_s * 0.999 <= more / mean <= left.most_s * 1.001
