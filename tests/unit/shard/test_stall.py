"""When a member finds that an owner makes nothing of what waits for it."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import Pace, RoundConfig
from legion_p2p.core.shard.life_events import Advanced, Owners
from legion_p2p.core.shard.stall import MARGIN, STALL_PERIODS, Stalled, StallWatch

ME, A, B = (PeerId(name) for name in ("me", "a", "b"))
CONFIG = RoundConfig()


def watch_of(owner: PeerId, config: RoundConfig = CONFIG, period_s: float | None = 10.0) -> StallWatch:
    pace = Pace(config)
    pace.period_s = period_s
    watch = StallWatch(ME, config, pace)
    watch.handle(Owners(Ownership(owner, None)), 0.0)
    return watch


def test_an_owner_is_reported_after_three_typical_rounds_without_a_version() -> None:
    watch = watch_of(A)
    watch.look(True, 5.0)
    at = watch.next_deadline()

    watch.look(True, 34.9)
    early = watch.poll()
    watch.look(True, 35.0)

    assert at == 5.0 + STALL_PERIODS * 10.0
    assert early is None and watch.poll() == Stalled(A) and watch.poll() is None


def test_each_version_begins_the_wait_again() -> None:
    watch = watch_of(A)
    for second in range(0, 200, 20):
        watch.look(True, float(second))
        watch.handle(Advanced(second, -1), second + 19.0)
        assert watch.poll() is None and watch.next_deadline() is None


def test_nothing_is_expected_where_nothing_waits() -> None:
    watch = watch_of(A)
    watch.look(True, 0.0)
    watch.look(False, 1.0)
    watch.look(True, 100.0)

    assert watch.poll() is None and watch.next_deadline() == 130.0


def test_an_owner_that_refuses_every_push_makes_nothing_either() -> None:
    watch = watch_of(A)
    for second in range(36):
        watch.look(True, float(second))
        watch.look(False, second + 0.1)
        assert watch.next_deadline() is None
        assert (watch.poll() is not None) == (second == 30)


def test_another_owner_gets_its_own_time() -> None:
    watch = watch_of(A)
    watch.look(True, 0.0)
    watch.handle(Owners(Ownership(B, None)), 29.0)
    watch.look(True, 29.0)
    watch.look(True, 31.0)

    assert watch.poll() is None and watch.next_deadline() == 59.0


def test_this_peer_watches_neither_itself_nor_rounds_that_wait_for_all() -> None:
    for watch in (watch_of(ME), watch_of(A, RoundConfig(quorum=1.0))):
        watch.look(True, 0.0)
        watch.look(True, 1e6)
        assert watch.poll() is None and watch.next_deadline() is None


def test_what_may_be_on_a_slow_link_gets_more_time_but_not_for_ever() -> None:
    watch = watch_of(A)
    watch.look(True, 0.0, in_transit=True)
    at = watch.next_deadline()
    watch.look(True, 89.0, in_transit=True)
    early = watch.poll()
    watch.look(True, 90.0, in_transit=True)

    assert at == 90.0 and early is None and watch.poll() == Stalled(A)


def test_it_is_never_less_patient_than_an_honest_owner_with_absent_members() -> None:
    for period_s in (None, 0.1, 1.0, 10.0, 600.0):
        watch = watch_of(A, period_s=period_s)
        pace = Pace(CONFIG)
        pace.period_s = period_s
        assert watch.patience_s() >= MARGIN * pace.patience_s() > pace.patience_s()


def test_one_long_wait_is_no_measure_for_the_next() -> None:
    watch = watch_of(A, period_s=1.0)
    before = watch.patience_s()
    for begin, wait in ((0.0, 1.0), (10.0, 100.0)):
        watch.look(True, begin)
        watch.handle(Advanced(1, -1), begin + wait)

    assert watch.patience_s() == before


@given(st.lists(st.tuples(st.sampled_from(["look", "advance", "own"]), st.floats(0.01, 50.0)), max_size=60))
def test_an_owner_is_never_reported_before_its_time(steps: list[tuple[str, float]]) -> None:
    watch, now, quiet_since = watch_of(A), 0.0, None
    for what, pause_s in steps:
        now += pause_s
        if what == "advance":
            watch.handle(Advanced(1, -1), now)
            quiet_since = None
        elif what == "own":
            watch.handle(Owners(Ownership(A if pause_s < 25 else B, None)), now)
        else:
            limit_s = watch.patience_s()
            watch.look(True, now)
            quiet_since = now if quiet_since is None else quiet_since
            if watch.poll() is not None:
                assert now - quiet_since >= limit_s - 1e-6
