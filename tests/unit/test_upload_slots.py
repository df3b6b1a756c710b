"""What a peer gives away at a time: never more than its limits, and a time to come again that grows with the crowd."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.upload_slots import MAX_REMEMBERED, MAX_RETRY_S, MIN_RETRY_S, UploadSlotLimits, UploadSlots

MB = 1 << 20
LIMITS = UploadSlotLimits(max_gifts=3, max_bytes=10 * MB, max_per_peer=2)
A, B, C, D = (PeerId(name) for name in "abcd")


def test_so_many_at_a_time_and_not_all_to_one() -> None:
    giving = UploadSlots(LIMITS)

    assert [giving.begin(A, MB) for _ in range(3)] == [True, True, False]
    assert [giving.begin(B, MB), giving.begin(C, MB)] == [True, False]
    giving.end(A, MB)
    assert giving.begin(C, MB)


def test_together_they_have_a_limit_that_one_alone_may_exceed() -> None:
    giving = UploadSlots(LIMITS)

    assert giving.begin(A, 11 * MB)
    assert not giving.begin(B, 1)
    giving.end(A, 11 * MB)
    assert giving.begin(B, 6 * MB) and not giving.begin(C, 5 * MB) and giving.begin(C, 4 * MB)


def test_the_more_wait_the_later_to_come_again() -> None:
    giving = UploadSlots(LIMITS)
    giving.begin(A, 10 * MB)
    rate_bps = 8e6

    first = giving.retry_s(B, rate_bps, 0.0)
    again = giving.retry_s(B, rate_bps, 1.0)
    crowd = giving.retry_s(D, rate_bps, 2.0)

    assert first == again == 10 * MB / 1e6
    assert crowd > first
    assert giving.retry_s(C, rate_bps, 1000.0) == first  # the others will not come back
    assert giving.retry_s(C, 1.0, 1000.0) == MAX_RETRY_S and UploadSlots(LIMITS).retry_s(C, None, 0.0) == MIN_RETRY_S


def test_whoever_is_turned_away_takes_no_memory_for_ever() -> None:
    giving = UploadSlots(LIMITS)

    for i in range(2 * MAX_REMEMBERED):
        giving.retry_s(PeerId(f"peer {i}"), None, i / 1000)

    assert len(giving._turned_away) <= MAX_REMEMBERED


@given(st.lists(st.tuples(st.sampled_from([A, B, C, D]), st.integers(1, 12 * MB), st.booleans()), max_size=60))
def test_what_is_under_way_stays_within_the_limits(asked: list[tuple[PeerId, int, bool]]) -> None:
    giving = UploadSlots(LIMITS)
    under_way: list[tuple[PeerId, int]] = []

    for peer, n_bytes, ends in asked:
        if ends and under_way:
            giving.end(*under_way.pop(0))
        elif giving.begin(peer, n_bytes):
            under_way.append((peer, n_bytes))
        assert giving.n_gifts == len(under_way) <= LIMITS.max_gifts
        assert giving.n_bytes == sum(n for _, n in under_way)
        assert giving.n_bytes <= LIMITS.max_bytes or len(under_way) == 1
        assert all(sum(p == peer for p, _ in under_way) <= LIMITS.max_per_peer for peer, _ in under_way)
