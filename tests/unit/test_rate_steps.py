"""The steps of a limit that keys lower and raise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.rate_steps import STEPS_BPS, higher_step, lower_step
from legion_p2p.core.units import parse_rate, rate_text

RATES = st.floats(1e3, 1e10)


@given(RATES)
def test_a_lower_step_is_lower_and_a_higher_one_higher_until_the_ends(limit: float) -> None:
    assert lower_step(limit, None) < limit or lower_step(limit, None) == STEPS_BPS[0]
    above = higher_step(limit)
    assert (above is None and limit >= STEPS_BPS[-1]) or above > limit


@given(st.none() | RATES, st.none() | RATES)
def test_every_step_is_one_that_can_be_written_and_read(limit: float | None, reached: float | None) -> None:
    assert parse_rate(rate_text(lower_step(limit, reached))) in STEPS_BPS


@pytest.mark.parametrize(("reached", "first"), [(None, 500e6), (3e6, 2e6), (100e3, 256e3)])
def test_the_first_limit_is_felt_where_it_is_known_what_sending_reaches(reached: float | None, first: float) -> None:
    assert lower_step(None, reached) == first


def test_from_the_highest_there_is_none_and_from_none_there_is_nothing_higher() -> None:
    assert higher_step(STEPS_BPS[-1]) is None and higher_step(None) is None
    assert lower_step(2e6, 50e6) == 1e6 and higher_step(2e6) == 5e6
