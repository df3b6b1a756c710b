"""How long steps take, and how long they wait."""

import pytest

from legion_p2p.train.step_clock import REPORT_EVERY_S, StepClock


def test_a_step_is_measured_without_its_waiting_and_waiting_is_a_share_of_all_time() -> None:
    clock = StepClock(now=100.0)
    assert (clock.step_s, clock.speed(50)) == (0.0, {"tokens_per_s": 0.0, "step_s": 0.0})

    clock.stepped(began=101.0, now=101.5)
    assert clock.step_s == 0.0, "the first step has no beginning"
    clock.stepped(began=103.5, now=104.0)

    assert clock.step_s == pytest.approx(2.0)
    assert clock.speed(50) == {"tokens_per_s": 25.0, "step_s": 2.0}
    assert (clock.blocked_s, clock.blocked_fraction(104.0)) == (1.0, 0.25)


def test_a_pause_is_part_of_no_step_and_of_no_share() -> None:
    clock = StepClock(now=0.0)
    clock.stepped(began=1.0, now=1.0)
    clock.paused(1000.0)
    clock.stepped(began=1002.0, now=1003.0)

    assert clock.step_s == 0.0
    assert clock.blocked_fraction(1004.0) == 0.25


def test_a_report_is_due_once_in_a_period() -> None:
    clock = StepClock(now=0.0)

    due = [clock.report_is_due(10.0 + i * REPORT_EVERY_S / 2) for i in range(5)]

    assert due == [True, False, True, False, True]
