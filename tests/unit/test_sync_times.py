"""When one shard syncs with other regions, counted in its versions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.sync_times import MAX_REGIONS, MUCH, RETRY, SyncTimes


def after_a_sync(version: int = 10, at_s: float = 10.0) -> SyncTimes:
    times = SyncTimes(last=0, at_s=0.0)
    times.synced("west", version, at_s)
    return times


def test_a_version_that_comes_right_after_a_sync_does_not_look_like_a_short_one() -> None:
    times = after_a_sync()

    assert times.version_s(11, 10.01) == pytest.approx((0.01 + 4.0) / 5)
    assert times.version_s(10, 10.5) == pytest.approx(1.0)


def test_rounds_that_become_longer_are_seen() -> None:
    assert after_a_sync().version_s(60, 510.0) == pytest.approx(10.0, rel=0.1)


def test_nothing_is_known_of_versions_before_there_was_one() -> None:
    assert SyncTimes(last=5, at_s=0.0).version_s(5, 100.0) is None


def test_no_sync_is_begun_before_the_interval_that_the_run_allows() -> None:
    times = after_a_sync(version=10)

    assert [times.is_open(version, every_least=4) for version in (13, 14)] == [False, True]


def test_after_an_attempt_the_next_one_waits_a_part_of_the_interval_and_at_least_a_version() -> None:
    times = after_a_sync(version=10)

    times.attempted(20, every=8)
    assert [times.is_open(version, every_least=4) for version in (20 + 8 // RETRY - 1, 20 + 8 // RETRY)] == [False, True]
    times.attempted(30, every=1)
    assert [times.is_open(version, every_least=1) for version in (30, 31)] == [False, True]


def test_a_sync_is_due_once_its_side_has_waited_as_long_as_it_is_to() -> None:
    times = after_a_sync(version=10)

    assert [times.is_due(version, wait=6) for version in (15, 16)] == [False, True]


def test_a_second_request_at_the_version_of_the_last_sync_is_too_early() -> None:
    times = after_a_sync(version=10)

    assert times.is_too_early("west", 10, every=1, every_least=1)
    assert not times.is_too_early("east", 10, every=1, every_least=1)


def test_a_request_is_too_early_only_where_the_connection_asks_for_much_longer_intervals() -> None:
    times = after_a_sync(version=10)

    assert times.is_too_early("east", 10 + 16 // MUCH - 1, every=16, every_least=2)
    assert not times.is_too_early("east", 10 + 16 // MUCH, every=16, every_least=2)
    assert not times.is_too_early("east", 11, every=2, every_least=2)


def test_what_a_relay_brings_counts_as_a_sync_with_no_region() -> None:
    times = after_a_sync(version=10)

    times.moved(20, 20.0)
    assert not times.is_due(22, wait=6) and times.is_due(26, wait=6)
    assert not times.is_too_early("west", 20, every=2, every_least=2)


def test_only_some_regions_are_remembered_and_the_oldest_sync_is_forgotten_first() -> None:
    times = SyncTimes(last=0, at_s=0.0)
    for i in range(MAX_REGIONS + 1):
        times.synced(f"region {i}", 7, 1.0)

    assert not times.is_too_early("region 0", 7, every=1, every_least=1)
    assert times.is_too_early("region 1", 7, every=1, every_least=1)


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1000)), min_size=1))
def test_however_syncs_come_a_version_takes_a_time_that_is_not_negative(steps: list[tuple[int, float]]) -> None:
    times, version, now = SyncTimes(last=0, at_s=0.0), 0, 0.0
    for n_versions, pause_s in steps:
        version, now = version + n_versions, now + pause_s
        times.synced("west", version, now)
        known = times.version_s(version + 1, now + 1.0)
        assert known is not None and 0 <= known < 2000
