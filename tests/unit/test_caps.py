"""Limits on traffic, as people write them, and by the time of day."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.caps import MINUTES_PER_DAY, QUIET_BPS, Caps, QuietHours, parse_caps, parse_quiet_hours
from legion_p2p.core.units import MAX_RATE_BPS, MIN_RATE_BPS, parse_duration, parse_rate, rate_text
from legion_p2p.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rate_bps"), [("20mbit", 20e6), ("1.5 Gbit", 1.5e9), ("256kbit", 256e3), ("9000bit", 9000.0), (" 10MBIT ", 10e6)]
)
def test_rates_are_bits_per_second(text, rate_bps):
    assert parse_rate(text) == rate_bps


@pytest.mark.parametrize("text", ["", "20", "20MB", "20mbps", "-1mbit", "1e6bit", "mbit", "0kbit", "7kbit", "2000gbit", "٣mbit"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(UsageError, match="rate "):
        parse_rate(text)


def test_durations_have_a_unit():
    assert (parse_duration("50ms"), parse_duration("1.5s"), parse_duration("250us")) == (0.05, 1.5, 0.00025)


@given(st.floats(MIN_RATE_BPS, MAX_RATE_BPS))
def test_a_rate_that_is_written_is_read_again(rate_bps):
    assert parse_rate(rate_text(rate_bps)) == pytest.approx(rate_bps, rel=1e-5)


def test_quiet_hours_may_span_midnight():
    quiet = parse_quiet_hours("22:00-07:00=2mbit")

    assert quiet == QuietHours(22 * 60, 7 * 60, 2e6)
    assert [quiet.covers(60 * h) for h in (21, 22, 0, 6, 7, 12)] == [False, True, True, True, False, False]
    assert [parse_quiet_hours("9:30-17:00").covers(m) for m in (569, 570, 1019, 1020)] == [False, True, True, False]
    assert parse_quiet_hours("22:00-24:00") == QuietHours(22 * 60, 0, QUIET_BPS)


@pytest.mark.parametrize(
    "text", ["", "22-7", "22:00", "25:00-07:00", "22:60-07:00", "22:00-22:00", "0:00-24:00", "22:00-07:00=2"]
)
def test_quiet_hours_that_cannot_be_are_refused(text):
    with pytest.raises(UsageError, match=r"quiet hours|rate '2'"):
        parse_quiet_hours(text)


@given(st.integers(0, MINUTES_PER_DAY - 1), st.integers(0, MINUTES_PER_DAY - 1), st.integers(0, MINUTES_PER_DAY - 1))
def test_quiet_hours_and_the_rest_make_a_day(begin, end, minute):
    if begin != end:
        assert QuietHours(begin, end).covers(minute) != QuietHours(end, begin).covers(minute)


def test_the_lower_limit_holds():
    caps = parse_caps("1mbit", "50mbit", "22:00-07:00=2mbit")

    assert caps.at(12 * 60) == (1e6, 50e6)
    assert caps.at(23 * 60) == (1e6, 2e6)
    assert parse_caps() == Caps() and Caps().at(0) == (math.inf, math.inf)
