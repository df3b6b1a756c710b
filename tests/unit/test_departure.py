"""What people are told while a peer hands over what only it has."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.departure import NOTICE_AFTER_S, NOTICE_EVERY_S, HandOverNotices


def test_the_first_notice_comes_after_a_moment_and_the_next_ones_less_often() -> None:
    notices = HandOverNotices(100.0)

    assert notices.next_at == 100.0 + NOTICE_AFTER_S
    notices.remaining_s(1000, None, notices.next_at)
    assert notices.next_at == 100.0 + NOTICE_AFTER_S + NOTICE_EVERY_S


def test_the_time_that_remains_follows_from_what_is_left_and_the_upload() -> None:
    assert HandOverNotices(0.0).remaining_s(1_000_000, 8e6, 1.0) == 1.0


def test_without_a_measured_upload_the_rate_is_that_of_the_bytes_since_the_first_notice() -> None:
    notices = HandOverNotices(0.0)

    assert notices.remaining_s(9000, None, 1.0) is None
    assert notices.remaining_s(6000, None, 4.0) == 6.0
    assert notices.remaining_s(3000, None, 7.0) == 3.0


def test_without_progress_the_time_counts_down_to_nothing() -> None:
    notices = HandOverNotices(0.0)

    told = [notices.remaining_s(1_000_000, 2e6, now) for now in (1.0, 3.0, 4.0, 9.0)]
    assert told == [4.0, 2.0, 1.0, 0.0]


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(0, 1e9) | st.none(), st.floats(0, 100)), min_size=1))
def test_no_time_that_remains_is_negative_whatever_is_measured(seen: list[tuple[int, float | None, float]]) -> None:
    notices, now = HandOverNotices(0.0), 0.0
    for left_bytes, upload_bps, pause_s in seen:
        now += pause_s
        remaining_s = notices.remaining_s(left_bytes, upload_bps, now)
        assert remaining_s is None or remaining_s >= 0
