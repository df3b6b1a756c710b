"""When the round of a shard closes, and with what."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import round as round_module
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Contribution, Pace, RoundConfig, ShardRound, Verdict, staleness_weight
from legion_p2p.core.wire import Inclusion

A, B, C = (PeerId(name) for name in "ABC")
CONFIG = RoundConfig()


def round_of(*expected: PeerId, config: RoundConfig = CONFIG, now: float = 0.0) -> ShardRound:
    made = ShardRound(config, 0, {})
    made.expect(expected, now)
    return made


def push(shard_round: ShardRound, peer: PeerId, seq: int, now: float, version: int = 0) -> Verdict:
    return shard_round.push(Contribution(peer, seq, version, 100, now), now)


def close(shard_round: ShardRound, now: float) -> set[tuple[PeerId, int]]:
    """Close and advance, as the owner does; what was in it."""
    closed = shard_round.close(now)
    shard_round.advanced(closed.version + 1, [Inclusion(c.peer, c.seq) for c in closed.contributions])
    return {(c.peer, c.seq) for c in closed.contributions}


def play(shard_round: ShardRound, n_rounds: int, *peers: PeerId, period_s: float = 1.0, spread_s: float = 0.2) -> float:
    """Rounds in which all of `peers` push within `spread_s`; when the last one closed."""
    for i in range(n_rounds):
        for k, peer in enumerate(peers):
            push(shard_round, peer, i, i * period_s + spread_s * k / max(1, len(peers) - 1), version=i)
        close(shard_round, i * period_s + spread_s)
    return (n_rounds - 1) * period_s + spread_s


def test_it_closes_at_once_when_all_have_pushed() -> None:
    shard_round = round_of(A, B)

    push(shard_round, A, 0, 1.0)
    with_one = shard_round.ready(1.0)
    push(shard_round, B, 0, 1.5)

    assert (with_one, shard_round.ready(1.5)) == (False, True)
    assert shard_round.next_deadline() == 0.0


def test_it_never_closes_empty() -> None:
    shard_round = round_of(A, B)

    assert not shard_round.ready(1e9) and shard_round.next_deadline() is None
    shard_round.expect([], 0.0)
    assert not shard_round.ready(1e9) and shard_round.next_deadline() is None


def test_with_a_quorum_it_closes_after_the_grace_period() -> None:
    shard_round = round_of(A, B, C)

    push(shard_round, A, 0, 1.0)
    push(shard_round, B, 0, 2.0)

    assert shard_round.next_deadline() == 2.0 + CONFIG.first_grace_s
    assert not shard_round.ready(3.99) and shard_round.ready(4.0)


def test_without_a_quorum_it_closes_when_patience_is_over() -> None:
    shard_round = round_of(A, B, C)

    push(shard_round, A, 0, 1.0)

    assert shard_round.next_deadline() == 1.0 + 4 * CONFIG.min_patience_s


def test_patience_and_grace_follow_what_was_measured() -> None:
    shard_round = round_of(A, B, C)
    last = play(shard_round, 20, A, B, C, period_s=10.0, spread_s=1.0)

    push(shard_round, A, 20, last + 1)
    patience_at = shard_round.next_deadline()
    push(shard_round, B, 20, last + 2)
    grace_at = shard_round.next_deadline()

    assert patience_at == pytest.approx(last + 1 + 24.0)
    assert grace_at == pytest.approx(last + 2 + 2.0)


def test_members_that_push_every_second_round_do_not_make_patience_longer_each_time() -> None:
    """They are most of those that are waited for, and established."""
    shard_round = round_of(A, B, C)
    now = play(shard_round, 20, A, B, C, period_s=10.0, spread_s=1.0)
    patience_s = []
    for seq in range(20, 60):
        now += 10.0
        push(shard_round, A, seq, now)
        if seq % 2:
            push(shard_round, B, seq, now)
            push(shard_round, C, seq, now)
        deadline = shard_round.next_deadline()
        assert deadline is not None
        patience_s.append(deadline - now)
        now = max(now, deadline)
        shard_round.close(now)
        shard_round.advanced(shard_round.version + 1, [])

    assert max(patience_s) <= 1.1 * CONFIG.patience_periods * 10.0


def test_a_quorum_of_one_never_closes_without_all_that_are_waited_for() -> None:
    shard_round = round_of(A, B, C, config=RoundConfig(quorum=1.0))

    push(shard_round, A, 0, 1.0)
    push(shard_round, B, 0, 1.0)

    assert shard_round.next_deadline() is None and not shard_round.ready(1e9)
    shard_round.expect([A, B], 5.0)
    assert shard_round.ready(5.0)


def test_who_missed_two_rounds_is_not_waited_for_until_it_pushes_again() -> None:
    shard_round = round_of(A, B, C)

    for i in range(2):
        assert C in shard_round.waited_for()
        push(shard_round, A, i, float(i))
        push(shard_round, B, i, float(i))
        close(shard_round, i + 0.5)
    waited_for = shard_round.waited_for()
    push(shard_round, C, 0, 3.0)

    assert waited_for == {A, B}
    assert shard_round.waited_for() == {A, B, C}


def test_a_contribution_sent_twice_counts_once() -> None:
    shard_round = round_of(A, B)

    verdicts = [push(shard_round, A, 0, 1.0), push(shard_round, A, 0, 1.1)]

    assert verdicts == [Verdict.ACCEPTED, Verdict.REPEATED]
    assert [c.seq for c in shard_round.waiting] == [0]


def test_what_is_included_is_never_included_again() -> None:
    shard_round = round_of(A)
    push(shard_round, A, 3, 1.0)
    close(shard_round, 1.0)

    verdicts = [push(shard_round, A, seq, 2.0) for seq in (3, 2, 4)]

    assert verdicts == [Verdict.INCLUDED, Verdict.INCLUDED, Verdict.ACCEPTED]


def test_what_an_update_from_elsewhere_includes_waits_no_longer() -> None:
    shard_round = round_of(A, B, C)
    for peer in (A, B):
        push(shard_round, peer, 1, 1.0)

    shard_round.advanced(7, [Inclusion(A, 1), Inclusion(B, 0)])

    assert shard_round.version == 7
    assert [c.peer for c in shard_round.waiting] == [B]


def test_a_quorum_that_is_lost_again_closes_nothing() -> None:
    shard_round = round_of(A, B, C)
    push(shard_round, A, 1, 1.0)
    push(shard_round, B, 1, 1.0)

    shard_round.advanced(1, [Inclusion(A, 1)])

    assert shard_round.next_deadline() == 1.0 + 4 * CONFIG.min_patience_s


def test_a_refused_contribution_is_named_with_the_reason() -> None:
    shard_round = round_of(A, B, C)
    push(shard_round, A, 0, 1.0)
    push(shard_round, B, 0, 1.0)

    shard_round.refused(B, "x" * 1000)
    closed = shard_round.close(9.0)

    assert [c.peer for c in closed.contributions] == [A]
    assert [(f.peer, f.reason[:20]) for f in closed.failed] == [("B", "x" * 20), ("C", "did not push in time")]
    assert all(len(f.reason) <= 200 for f in closed.failed)
    assert closed.expected == 3


def test_a_late_push_weighs_less_but_never_nothing() -> None:
    assert [staleness_weight(s) for s in (-1, 0, 1, 3)] == [1.0, 1.0, 0.5, 0.25]
    assert staleness_weight(10**6) > 0


def test_the_first_grace_is_a_guess_and_later_ones_are_at_most_half_a_period() -> None:
    pace = Pace(CONFIG)
    first = pace.grace_s()

    for i in range(10):
        pace.closed([i * 4.0, i * 4.0 + 3.9], i * 4.0 + 3.9)

    assert first == CONFIG.first_grace_s
    assert pace.grace_s() == pytest.approx(2.0)


def test_who_contributed_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_module, "MAX_TRACKED", 2)
    shard_round = round_of()

    for peer in (A, B, A, C):
        shard_round.advanced(1, [Inclusion(peer, 5)])

    assert [push(shard_round, peer, 5, 1.0) for peer in (A, B, C)] == [Verdict.INCLUDED, Verdict.ACCEPTED, Verdict.INCLUDED]


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from([A, B, C]), st.integers(0, 6)),
        st.tuples(st.just("expect"), st.sets(st.sampled_from([A, B, C]))),
        st.tuples(st.just("wait"), st.floats(0.0, 30.0)),
        st.tuples(st.just("elsewhere"), st.sampled_from([A, B, C]), st.integers(0, 6)),
    ),
    max_size=60,
)


@given(happenings, st.sampled_from([0.5, 2 / 3, 1.0]))
def test_every_accepted_contribution_is_in_exactly_one_version_unless_its_sender_replaced_it(
    events: list[tuple], quorum: float
) -> None:
    shard_round = ShardRound(RoundConfig(quorum=quorum), 0, {})
    now = 0.0
    accepted: set[tuple[PeerId, int]] = set()
    versions: list[set[tuple[PeerId, int]]] = []
    for what, *args in events:
        if what == "push":
            if push(shard_round, args[0], args[1], now) is Verdict.ACCEPTED:
                # of two that wait of one peer the newer one counts
                accepted = {(p, s) for p, s in accepted if p != args[0] or any((p, s) in v for v in versions)} | {tuple(args)}
        elif what == "expect":
            shard_round.expect(args[0], now)
        elif what == "wait":
            now += args[0]
        else:
            shard_round.advanced(shard_round.version + 1, [Inclusion(*args)])
            versions.append({(args[0], seq) for seq in range(args[1] + 1) if not any((args[0], seq) in v for v in versions)})
        if shard_round.ready(now):
            if quorum == 1.0:
                assert shard_round.waited_for() <= {c.peer for c in shard_round.waiting}
            versions.append(close(shard_round, now))
            assert versions[-1] and len({peer for peer, _ in versions[-1]}) == len(versions[-1])
        deadline = shard_round.next_deadline()
        assert deadline is None or deadline > now

    waiting = {(c.peer, c.seq) for c in shard_round.waiting}
    for one, other in itertools.combinations([*versions, waiting], 2):
        assert not one & other
    assert accepted <= set().union(*versions, waiting)
    assert waiting <= accepted


def after_many_rounds(*newcomers: PeerId) -> ShardRound:
    """A and B have made a hundred rounds, a second each; of `newcomers` each has pushed to ten of them."""
    shard_round = ShardRound(CONFIG, 100, {A: 99, B: 99, **dict.fromkeys(newcomers, 9)})
    shard_round.expect([A, B, *newcomers], 0.0)
    for i in range(20):
        for peer in (A, B):
            push(shard_round, peer, 100 + i, float(i), version=100 + i)
        for peer in newcomers:
            push(shard_round, peer, 10 + i, float(i), version=100 + i)
        close(shard_round, float(i))
    return shard_round


def test_newcomers_are_waited_for_only_a_moment_once_the_others_are_there() -> None:
    shard_round = after_many_rounds(C, PeerId("D"))
    push(shard_round, A, 120, 19.7)
    before = shard_round.next_deadline()
    push(shard_round, B, 120, 20.0)

    grace_s = CONFIG.newcomer_grace_periods * 1.0
    assert C in shard_round.waited_for() and before == pytest.approx(19.7 + CONFIG.min_patience_s)
    assert shard_round.next_deadline() == pytest.approx(20.0 + grace_s, abs=0.01)


def test_a_crowd_of_newcomers_is_not_waited_for() -> None:
    crowd = [PeerId(f"n{i}") for i in range(20)]
    shard_round = after_many_rounds(*crowd)

    assert {A, B} < shard_round.waited_for() and len(shard_round.waited_for()) == 4


def test_a_new_owner_knows_the_pace_of_the_rounds_before() -> None:
    pace = Pace(CONFIG)
    for i in range(10):
        pace.closed((), float(i))

    shard_round = ShardRound(CONFIG, 10, {}, pace)
    shard_round.expect([A, B, C], 10.0)
    push(shard_round, A, 0, 10.0)
    push(shard_round, B, 0, 10.0)

    assert shard_round.next_deadline() == pytest.approx(10.0 + CONFIG.max_grace_periods * 1.0)
