"""How far a copy goes by its own training between two syncs with other regions."""

import pytest
import torch

from legion_p2p.tensor.travel import FADING, Travel


def at(value: float) -> torch.Tensor:
    return torch.full((4,), value)


def test_how_far_a_copy_goes_is_that_between_two_syncs_however_long_one_has_to_wait_for_an_answer() -> None:
    travel = Travel(every=2)
    travel.look(at(0.0), 0)

    after_4 = travel.distance(at(1.0), 4)
    travel.look(at(0.0), 4)
    long_after = travel.distance(at(2500.0), 4004)

    assert after_4 == pytest.approx(2.0)
    assert long_after == pytest.approx(5.0)


def test_nothing_is_known_before_the_first_look() -> None:
    travel = Travel(every=2)

    assert travel.is_out_of_date(0)
    assert travel.distance(at(9.0), 3) == 0.0


def test_what_a_sync_moves_a_copy_by_is_not_its_own_travel() -> None:
    travel = Travel(every=2)
    travel.look(at(0.0), 0)

    travel.left(at(1.0), at(100.0), 2)

    assert travel.distance(at(100.0), 2) == pytest.approx(FADING * 2.0)


def test_without_a_sync_for_two_intervals_it_is_to_be_measured_again() -> None:
    travel = Travel(every=3)
    travel.look(at(0.0), 10)

    assert [travel.is_out_of_date(version) for version in (15, 16)] == [False, True]


def test_a_quiet_interval_does_not_say_that_the_copy_stands_still() -> None:
    travel = Travel(every=2)
    travel.look(at(0.0), 0)
    travel.left(at(4.0), at(4.0), 2)

    travel.left(at(4.0), at(4.0), 4)

    assert 0 < travel.distance(at(4.0), 5) < 8.0
