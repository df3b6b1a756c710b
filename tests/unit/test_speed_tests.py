"""Which tests of bandwidth are granted: few, one at a time, and none while this peer is busy."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.speed_tests import HOUR_S, MAX_PER_NETWORK, MAX_REMEMBERED, PAUSE_S, SpeedTests

A, B = PeerId("a"), PeerId("b")


def test_one_runs_at_a_time_and_none_while_own_transfers_do() -> None:
    tests = SpeedTests(10)

    assert tests.begin(A, "192.0.2.1", False, 0.0) == ""
    assert "busy" in tests.begin(B, "198.51.100.1", False, 1.0)
    tests.end()
    assert "busy" in tests.begin(B, "198.51.100.1", True, 2.0)
    assert tests.begin(B, "198.51.100.1", False, 3.0) == ""


def test_a_peer_waits_between_two_and_one_that_takes_none_says_so() -> None:
    tests = SpeedTests(10)
    tests.begin(A, "192.0.2.1", False, 0.0)
    tests.end()

    assert "one test in 60 s" in tests.begin(A, "192.0.2.1", False, PAUSE_S - 1)
    assert tests.begin(A, "192.0.2.1", False, PAUSE_S) == ""
    assert "takes no tests" in SpeedTests(0).begin(A, "192.0.2.1", False, 0.0)


def test_invented_identities_of_one_network_get_no_more_than_one_peer() -> None:
    tests = SpeedTests(100)

    granted = 0
    for i in range(2 * MAX_REMEMBERED):
        if not tests.begin(PeerId(f"p{i}"), f"192.0.2.{i % 256}", False, i * HOUR_S / (2 * MAX_REMEMBERED)):
            granted += 1
            tests.end()

    assert granted == MAX_PER_NETWORK and len(tests._last) <= MAX_REMEMBERED and len(tests._of_network) == 1


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.floats(0, 600), st.sampled_from("abcdef"), st.integers(0, 5), st.booleans()), max_size=60),
)
def test_no_hour_has_more_than_are_allowed(per_hour: int, asked: list[tuple[float, str, int, bool]]) -> None:
    tests, now, granted = SpeedTests(per_hour), 0.0, []

    for passed_s, peer, network, is_busy in asked:
        now += passed_s
        if not tests.begin(PeerId(peer), f"198.51.{network}.1", is_busy, now):
            assert not is_busy
            granted.append(now)
            tests.end()

    assert all(sum(0 <= at - began < HOUR_S for at in granted) <= per_hour for began in granted)
