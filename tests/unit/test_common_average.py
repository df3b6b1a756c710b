"""The average of the common model: what each look counts, and how often there is one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.train.common_average import MAX_SHARE, OVER, CommonAverage


def of(values: list[float]) -> float:
    """The average over looks that see these values."""
    seen = iter(values)
    average = CommonAverage(lambda: torch.tensor([next(seen)]))
    for _ in values:
        average.look()
    assert average.value is not None
    return float(average.value)


class Clock:
    """Stands still but for looks, which take `look_s`."""

    def __init__(self, look_s: float) -> None:
        self.now, self.look_s, self.n_looks = 0.0, look_s, 0

    def look(self) -> torch.Tensor:
        self.now += self.look_s
        self.n_looks += 1
        return torch.zeros(1)


def test_it_is_over_about_the_last_sixteenth_of_all_looks():
    last_sixteenth, last_look = [0.0] * 750 + [1.0] * 50, [0.0] * 799 + [1.0]

    assert of(last_sixteenth) == pytest.approx(1 - (15 / 16) ** OVER, abs=0.01)  # of a power function of that degree
    assert of(last_look) == pytest.approx(OVER / 800)


def test_the_first_looks_are_forgotten_until_there_are_enough_to_average():
    assert of([5.0] * (OVER - 1) + [1.0]) == 1.0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60))
def test_it_lies_between_what_was_seen(values: list[float]):
    assert min(values) - 1e-2 <= of(values) <= max(values) + 1e-2


def test_there_is_one_look_for_each_round():
    clock = Clock(look_s=0.0)
    average = CommonAverage(clock.look, lambda: clock.now)

    for step in range(1, 21):
        average.stepped(step, local_steps=5)

    assert clock.n_looks == 4


def test_looks_that_take_long_are_rarer():
    clock = Clock(look_s=1.0)
    average = CommonAverage(clock.look, lambda: clock.now)

    for step in range(1, 1001):
        clock.now += 1.0
        average.stepped(step, local_steps=5)

    assert 0.5 * MAX_SHARE <= clock.n_looks * clock.look_s / clock.now <= MAX_SHARE
