"""How often two regions meet, and in which codec, by what lies between their owners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.adapt import KEEP, CodecCost
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.intervals import SHARE, Direction, Interval, interval, rate_between

DENSE, SPARSE = CodecCost("dense", 8.0), CodecCost("sparse", 0.25)
BASE = Interval(4, "dense")


def chosen(bps: float | None, now: Interval = BASE, version_s: float | None = 1.0, most: int = 64) -> Interval:
    return interval((SPARSE, DENSE), [Direction(1_000_000, bps), Direction(1_000_000, 1e12)], version_s, 4, most, now)


def test_a_fast_link_takes_the_densest_codec_as_often_as_the_run_allows() -> None:
    assert chosen(100e6) == BASE


def test_a_slower_one_takes_a_sparser_codec_and_then_longer_intervals() -> None:
    assert chosen(1e6) == Interval(4, "sparse")
    assert chosen(0.1e6) == Interval(16, "sparse")


def test_what_does_not_fit_at_all_goes_as_rarely_as_the_run_allows() -> None:
    assert chosen(10.0) == Interval(64, "sparse")
    assert chosen(10.0, most=48) == Interval(32, "sparse")


def test_the_slower_of_both_directions_counts() -> None:
    ways = [Direction(1_000_000, 1e9), Direction(1_000_000, 1e6)]

    assert interval((DENSE, SPARSE), ways, 1.0, 4, 64, BASE) == Interval(4, "sparse")


def test_where_nothing_is_known_nothing_changes() -> None:
    assert chosen(None) == chosen(1e3, version_s=None) == chosen(1e3, version_s=0.0) == BASE
    assert interval((DENSE, SPARSE), [], 1.0, 4, 64, BASE) == BASE


def test_what_is_better_must_fit_with_room_to_spare_but_what_fits_stays() -> None:
    just = 8e6 / (SHARE * 4)
    worse = Interval(4, "sparse")

    assert chosen(1.01 * just, worse) == worse
    assert chosen(1.01 * KEEP * just, worse) == BASE
    assert chosen(1.01 * just, BASE) == BASE


@given(st.floats(1e2, 1e10), st.floats(0.01, 1e3), st.sampled_from([BASE, Interval(8, "sparse"), Interval(3, "gone")]))
def test_meetings_take_no_more_than_their_share_of_a_link_unless_the_run_wants_more(
    bps: float, version_s: float, now: Interval
) -> None:
    made = chosen(bps, now, version_s)
    busy_s = 1_000_000 * {"dense": 8.0, "sparse": 0.25}[made.codec] / bps

    assert made.every in (4, 8, 16, 32, 64)
    assert made == Interval(64, "sparse") or busy_s <= SHARE * made.every * version_s


def test_the_rate_between_two_is_the_least_that_anything_says() -> None:
    up, down = Announcement("a", "run", upload_bps=5e6), Announcement("b", "run", download_bps=3e6)

    assert rate_between(up, down, None, 4e6) == 3e6
    assert rate_between(up, Announcement("c", "run")) == 5e6
    assert rate_between(Announcement("d", "run"), Announcement("c", "run"), None) is None
    assert rate_between(up, down, 1e6) == pytest.approx(1e6)
