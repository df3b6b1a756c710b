"""Who lives: the table of members, with time as an argument."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import membership
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Accuse, Alarm, Changed, CheckOn, Effect, Greet, Liveness, Met, Probe, Refute, believed
from legion_p2p.core.membership import Membership, MembershipConfig
from legion_p2p.core.ring_watch import MAX_GROWN, N_WATCHED, QUIET_FROM, grown, watched
from legion_p2p.services.membership.region_roles import RegionRoles, Roles

ME, A, B, C = (PeerId(name) for name in ("me", "A", "B", "C"))
CONFIG = MembershipConfig(announce_s=2.0, suspect_after_s=4.5, grace_s=3.0, probe_every_s=1.0, forget_s=60.0, asleep_after_s=3.0)
ALIVE, SUSPECT, DEAD = Liveness.ALIVE, Liveness.SUSPECT, Liveness.DEAD


def says(peer: PeerId, seq: int = 0, **more: Any) -> Announcement:
    return Announcement(peer, "run", seq=seq, **more)


def table_of(*peers: PeerId, now: float = 0.0) -> Membership:
    table = Membership(ME, CONFIG, now)
    for peer in peers:
        table.announced(says(peer), now)
    drain(table)
    return table


def drain(table: Membership) -> list[Effect]:
    effects = []
    while (effect := table.poll()) is not None:
        effects.append(effect)
    return effects


def wait_until(table: Membership, then: float, now: float) -> list[Effect]:
    """Look at the clock twice a second, as the service does."""
    effects = []
    while now < then:
        now = min(then, now + 0.5)
        table.handle_timeout(now)
        effects += drain(table)
    return effects


def liveness(table: Membership, peer: PeerId) -> Liveness | None:
    member = table.get(peer)
    return None if member is None else member.liveness


def test_a_newcomer_is_alive_and_told_of_once() -> None:
    table = Membership(ME, CONFIG, 0.0)

    news = [table.announced(says(A), 1.0), table.announced(says(A), 1.0)]

    assert news == [True, False]
    assert drain(table) == [Changed(A, None, ALIVE), Greet(A)]
    assert [m.peer_id for m in table.counted()] == [A]


def test_silence_leads_to_suspicion_then_to_death_with_probes_in_between() -> None:
    table = table_of(A)

    effects = wait_until(table, 8.0, 0.0)

    assert [e for e in effects if not isinstance(e, Probe)] == [
        Changed(A, ALIVE, SUSPECT),
        Changed(A, SUSPECT, DEAD),
        Accuse(A, 0),
    ]
    assert effects.count(Probe(A)) == 3
    assert table.counted() == [] and liveness(table, A) is DEAD


def test_death_comes_only_after_the_grace_period() -> None:
    table = table_of(A)

    wait_until(table, 4.5, 0.0)
    suspected = liveness(table, A)
    wait_until(table, 7.49, 4.5)
    just_before = liveness(table, A)
    wait_until(table, 7.5, 7.49)

    assert (suspected, just_before, liveness(table, A)) == (SUSPECT, SUSPECT, DEAD)


def test_a_late_message_refutes_death() -> None:
    table = table_of(A)
    wait_until(table, 8.0, 0.0)

    table.heard(A, 9.0)

    assert drain(table) == [Changed(A, DEAD, ALIVE), Met(A)]


def test_any_message_refutes_suspicion() -> None:
    table = table_of(A)
    wait_until(table, 5.0, 0.0)

    table.heard(A, 5.0)

    assert liveness(table, A) is ALIVE
    wait_until(table, 9.0, 5.0)
    assert liveness(table, A) is ALIVE


def test_what_others_pass_on_is_no_sign_of_life() -> None:
    table = table_of(A)
    wait_until(table, 4.0, 0.0)

    news = table.announced(says(A, 1), 4.0, direct=False)
    wait_until(table, 4.5, 4.0)

    assert news
    assert liveness(table, A) is SUSPECT


def test_what_the_dead_announced_later_is_worth_a_new_chance_even_passed_on() -> None:
    table = table_of(A)
    wait_until(table, 8.0, 0.0)

    repeated = table.announced(says(A), 8.0, direct=False)
    still_dead = liveness(table, A)
    newer = table.announced(says(A, 1), 8.0, direct=False)

    assert (repeated, still_dead) == (False, DEAD)
    assert (newer, liveness(table, A)) == (True, ALIVE)


def test_an_old_announcement_that_comes_late_changes_nothing() -> None:
    table = table_of()
    table.announced(says(A, 5, incarnation=1), 0.0)
    drain(table)

    news = [table.announced(says(A, 4, incarnation=1), 1.0), table.announced(says(A, 9, incarnation=0), 1.0)]

    assert news == [False, False]
    assert table.get(A).announcement.order == (1, 5)
    assert drain(table) == []


def test_who_leaves_is_gone_at_once_and_not_brought_back_by_what_it_said_before() -> None:
    table = table_of(A)

    table.announced(says(A, 5, leaving=True), 1.0)
    gone = table.get(A)
    resurrected = table.announced(says(A, 4), 2.0, direct=False)

    assert gone is None and not resurrected and table.get(A) is None
    assert drain(table) == [Changed(A, ALIVE, None)]


def test_who_left_may_come_back() -> None:
    table = table_of(A)
    table.announced(says(A, 5, leaving=True), 1.0)

    back = table.announced(says(A, 0, incarnation=1), 2.0)

    assert back and liveness(table, A) is ALIVE


def test_a_goodbye_of_somebody_unknown_is_remembered() -> None:
    table = table_of()

    table.announced(says(A, 5, leaving=True), 1.0)
    late = table.announced(says(A, 3), 1.5)

    assert not late and table.get(A) is None


def test_a_broken_connection_leads_to_suspicion_at_once() -> None:
    table = table_of(A)

    table.lost(A, 0.1)

    assert drain(table) == [Changed(A, ALIVE, SUSPECT), Probe(A)]
    wait_until(table, 3.0, 0.1)
    assert liveness(table, A) is SUSPECT
    wait_until(table, 3.2, 3.0)
    assert liveness(table, A) is DEAD


def test_losing_a_suspect_again_does_not_prolong_its_grace() -> None:
    table = table_of(A)
    table.lost(A, 0.0)

    for tenths in range(1, 30):
        table.lost(A, tenths / 10)
    wait_until(table, 3.0, 2.9)

    assert liveness(table, A) is DEAD


def test_an_accusation_counts_only_against_the_silent() -> None:
    table = table_of(A)

    table.accused(A, 0, 1.0)
    while_heard = liveness(table, A)
    table.accused(A, 0, 2.5)

    assert (while_heard, liveness(table, A)) == (ALIVE, SUSPECT)


def test_an_accusation_of_an_earlier_life_is_ignored() -> None:
    table = table_of()
    table.announced(says(A, incarnation=7), 0.0)

    table.accused(A, 6, 4.0)

    assert liveness(table, A) is ALIVE


def test_being_accused_this_peer_refutes_with_a_higher_incarnation() -> None:
    table = table_of(A)
    table.incarnation = 3

    table.accused(ME, 2, 1.0)
    of_earlier_life = drain(table)
    table.accused(ME, 3, 1.0)

    assert of_earlier_life == []
    assert drain(table) == [Refute(4)]


def test_an_accusation_cannot_carry_the_incarnation_beyond_what_others_accept() -> None:
    table = table_of(A)
    table.incarnation = 3

    table.accused(ME, 1 << 62, 1.0)

    assert drain(table) == []


def test_a_flood_of_accusations_is_refuted_once_in_a_grace_period() -> None:
    table = table_of(A)
    n_refuted = 0

    for tenths in range(100):
        table.accused(ME, table.incarnation, tenths / 10)
        for effect in drain(table):
            n_refuted += 1
            table.incarnation = effect.incarnation

    assert n_refuted == 4  # at 0, 3, 6 and 9 s


def test_hearing_itself_from_an_earlier_life_it_outbids_that() -> None:
    table = table_of()
    table.incarnation = 3

    news = table.announced(says(ME, 9, incarnation=5), 0.0)

    assert not news and drain(table) == [Refute(6)]
    assert table.get(ME) is None


def test_who_was_itself_asleep_holds_nobodys_silence_against_them() -> None:
    table = table_of(A, B)
    wait_until(table, 2.0, 0.0)

    table.handle_timeout(602.0)

    assert liveness(table, A) is ALIVE and drain(table) == []
    wait_until(table, 604.4, 602.0)
    assert liveness(table, A) is ALIVE
    wait_until(table, 604.5, 604.4)
    assert liveness(table, A) is SUSPECT


def test_who_was_heard_before_a_sleeper_looked_at_the_clock_gets_no_extra_time() -> None:
    table = table_of(A)
    wait_until(table, 1.0, 0.0)

    table.heard(A, 600.0)  # woken by this very message
    table.handle_timeout(600.0)
    wait_until(table, 604.5, 600.0)

    assert liveness(table, A) is SUSPECT


def test_who_was_lost_before_a_sleeper_looked_at_the_clock_gets_no_extra_grace() -> None:
    table = table_of(A)

    table.lost(A, 600.0)
    table.handle_timeout(600.0)
    wait_until(table, 603.0, 600.0)

    assert liveness(table, A) is DEAD


def test_the_dead_are_forgotten_in_the_end() -> None:
    table = table_of(A)

    wait_until(table, 7.5 + 59.5, 0.0)
    remembered = liveness(table, A)
    wait_until(table, 7.5 + 60.0, 67.0)

    assert remembered is DEAD and table.get(A) is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_MEMBERS", 3)
    table = table_of(A, B, C)

    news = table.announced(says(PeerId("one too many")), 1.0)
    for i in range(10):
        table.announced(says(PeerId(f"gone {i}"), leaving=True), 1.0)

    assert not news and table.n_refused == 1
    assert len(table.members()) == 3 and len(table._left) == 3
    assert table.announced(says(A, 1), 1.0)


def test_the_word_of_one_that_is_proven_to_have_lied_deposes_nobody() -> None:
    said = {"region": "home", "ready": True, "training": True}
    owner, honest = Announcement("A", "run", **said), Announcement("B", "run", **said)
    culprit = Announcement("C", "run", stalled=("A",), **said)

    believed = Roles().renewed("run", [owner, culprit], "home", frozenset())
    roles = Roles().renewed("run", [owner, culprit], "home", frozenset({PeerId("C")}))
    of_three = Roles().renewed("run", [owner, honest, culprit], "home", frozenset({PeerId("C")}))

    assert believed.deposed == {"A"} and roles.deposed == {"C"} and of_three.deposed == {"C"}
    assert roles.eligible.weights == {"A": 1.0}


def test_only_who_is_ready_and_of_this_region_and_has_weight_counts_for_ownership() -> None:
    announcements = [
        Announcement("A", "run", region="home", weight=2.0, ready=True),
        Announcement("B", "run", region="home", weight=2.0, ready=False),
        Announcement("C", "run", region="away", weight=2.0, ready=True),
        Announcement("D", "run", region="home", weight=0.0, ready=True),
    ]

    roles = Roles().renewed("run", announcements, "home", frozenset())

    assert roles.eligible.weights == {"A": 2.0}


peers = st.sampled_from([ME, A, B, C])
events = st.one_of(
    st.tuples(st.just("announced"), peers, st.integers(0, 3), st.integers(0, 5), st.booleans(), st.booleans()),
    st.tuples(st.just("heard"), peers),
    st.tuples(st.just("lost"), peers),
    st.tuples(st.just("accused"), peers, st.integers(0, 3)),
    st.tuples(st.just("wait"), st.floats(0.0, 2.9)),
    st.tuples(st.just("sleep"), st.floats(3.1, 100.0)),
)


@given(st.lists(events, max_size=60))
def test_whatever_happens_the_rules_of_the_table_hold(happenings: list[tuple]) -> None:
    table = Membership(ME, CONFIG, 0.0)
    now = 0.0
    seen: dict[PeerId, Liveness] = {}
    for what, *args in happenings:
        before = {m.peer_id: m for m in table.members()}
        if what == "announced":
            peer, incarnation, seq, leaving, direct = args
            table.announced(says(peer, seq, incarnation=incarnation, leaving=leaving), now, direct=direct)
        elif what == "accused":
            table.accused(args[0], args[1], now)
        elif what in ("heard", "lost"):
            getattr(table, what)(args[0], now)
            if what == "heard" and args[0] in before:
                assert liveness(table, args[0]) is ALIVE
        else:
            now += args[0]
            table.handle_timeout(now)
            for member in table.members():
                was = before[member.peer_id]
                if member.liveness is DEAD and was.liveness is not DEAD:
                    assert was.liveness is SUSPECT and now - was.since >= CONFIG.grace_s
                if member.liveness is ALIVE:
                    assert now - table._heard_at[member.peer_id] < CONFIG.suspect_after_s
                if what == "sleep":  # and so nobody is taken for dead, or suspected, for what this peer missed
                    assert (member.liveness is DEAD) == (was.liveness is DEAD)
            deadline = table.next_deadline()
            assert deadline is None or deadline > now
        for effect in drain(table):
            if isinstance(effect, Changed):
                assert seen.get(effect.peer_id) is effect.before and effect.before is not effect.after
                seen = (
                    {**seen, effect.peer_id: effect.after}
                    if effect.after
                    else {p: v for p, v in seen.items() if p != effect.peer_id}
                )
            elif isinstance(effect, Refute):
                assert effect.incarnation > table.incarnation
                table.incarnation = effect.incarnation
            else:
                assert effect.peer_id != ME
        assert seen == {m.peer_id: m.liveness for m in table.members()}
        assert ME not in seen
        assert table.counted() == [m for m in table.members() if m.liveness is not DEAD]  # though it is not made again each time
        assert table.n_counted == len(table.counted())
        for peer, was in before.items():  # what is known of a peer never becomes older
            assert table.get(peer) is None or table.get(peer).announcement.order >= was.announcement.order


# members that may not exist


def test_a_member_is_met_once_a_message_came_from_itself() -> None:
    table = table_of(A)

    table.lives(A, 1.0)
    table.announced(says(A, 1), 1.0, direct=True)
    before = table.get(A).met
    revision = table.roles_revision
    table.heard(A, 2.0)
    table.heard(A, 3.0)

    assert (before, table.get(A).met) == (False, True)
    assert table.roles_revision == revision + 1
    assert [e for e in drain(table) if isinstance(e, Met)] == [Met(A)]


def test_one_that_only_others_tell_of_is_greeted_less_and_less_often_and_then_no_more() -> None:
    table = Membership(ME, CONFIG, 0.0)
    greeted_at = []

    for seq in range(2000):
        now = float(seq)
        table.announced(says(A, seq), now, direct=True)
        greeted_at += [now for e in drain(table) if isinstance(e, Greet)]

    assert greeted_at == [0.0, 3.0, 9.0, 21.0, 45.0, 93.0]


def test_one_that_is_met_is_not_greeted() -> None:
    table = table_of(A)
    table.heard(A, 1.0)
    drain(table)

    for seq in range(1, 100):
        table.announced(says(A, seq), 5.0 * seq, direct=True)

    assert not [e for e in drain(table) if isinstance(e, Greet)]


@pytest.mark.parametrize(("met", "region", "counts"), [(False, "home", False), (True, "home", True), (False, "away", True)])
def test_what_a_member_says_counts_in_its_region_once_it_is_met(met: bool, region: str, counts: bool) -> None:
    table = Membership(ME, CONFIG, 0.0)
    table.moved("home")
    table.announced(Announcement(A, "run", region=region, ready=True, training=True, weight=5.0, step=7, envoy=True), 0.0)
    if met:
        table.heard(A, 0.0)

    said = believed(table.get(A), "home")

    assert (said.ready, said.training, said.step) == (counts, counts, 7)
    assert Roles().renewed("run", [said], region, frozenset()).eligible.weights == ({A: 5.0} if counts else {})


LARGE = tuple(PeerId(f"peer-{i}") for i in range(2 * QUIET_FROM))


def test_in_a_large_region_only_those_that_are_watched_are_asked_after_a_silence() -> None:
    table = table_of(*LARGE)

    effects = wait_until(table, CONFIG.suspect_after_s + 0.5, 0.0)

    assert {e.peer_id for e in effects if isinstance(e, CheckOn)} == watched(ME, LARGE, lambda _: True)
    assert len(effects) == N_WATCHED
    assert {liveness(table, peer) for peer in LARGE} == {ALIVE}


def test_one_that_answers_when_asked_is_no_suspect_and_is_asked_again_after_the_next_silence() -> None:
    table = table_of(*LARGE)
    wait_until(table, 4.5, 0.0)

    for peer in LARGE:
        table.heard(peer, 5.0)
    drain(table)
    effects = wait_until(table, 10.0, 5.0)

    assert [type(e) for e in effects] == [CheckOn] * N_WATCHED


def test_one_that_does_not_answer_is_suspected_named_to_the_others_and_dead_after_the_grace_period() -> None:
    table = table_of(*LARGE)
    silent = min(watched(ME, LARGE, lambda _: True))
    others = [peer for peer in LARGE if peer != silent]
    named: list[tuple[PeerId, ...]] = []

    now, effects = 0.0, []
    while now < 10.0:
        now += 0.5
        for peer in others:
            table.heard(peer, now)
        table.handle_timeout(now)
        effects += [effect for effect in drain(table) if not isinstance(effect, Met)]
        named.append(table.suspected())

    assert [e for e in effects if not isinstance(e, Probe)] == [
        CheckOn(silent),
        Changed(silent, ALIVE, SUSPECT),
        Alarm(),
        Changed(silent, SUSPECT, DEAD),
        Accuse(silent, 0),
    ]
    assert (silent,) in named and liveness(table, silent) is DEAD


def test_what_a_member_suspects_is_looked_into_where_it_is_silent_here_too() -> None:
    table = table_of(*LARGE)
    accuser, silent, heard = LARGE[:3]
    for peer in (accuser, heard):
        table.heard(peer, 3.0)
    drain(table)

    table.suspected_by(accuser, [silent, heard, accuser, PeerId("nobody")], 4.0)

    assert drain(table) == [Changed(silent, ALIVE, SUSPECT), Probe(silent, through_others=False)]
    assert table.suspected() == (silent,)


def test_who_is_suspected_by_one_that_this_peer_never_met_is_not_looked_into() -> None:
    table = table_of(*LARGE)

    table.suspected_by(LARGE[0], [LARGE[1]], 4.0)

    assert drain(table) == []


def test_a_peer_that_is_named_itself_announces_that_it_lives_and_not_again_at_once() -> None:
    table = table_of(*LARGE)
    table.heard(LARGE[0], 3.0)
    drain(table)

    for now in (4.0, 5.0, 8.0):
        table.suspected_by(LARGE[0], [ME], now)

    assert drain(table) == [Alarm(), Alarm()]


def test_in_a_small_region_silence_is_enough_and_nobody_is_named() -> None:
    table = table_of(A, B)
    wait_until(table, 4.0, 0.0)
    table.heard(A, 4.0)

    table.suspected_by(A, [B], 4.0)
    effects = wait_until(table, 6.0, 4.0)

    assert Changed(B, ALIVE, SUSPECT) in effects and not any(isinstance(e, CheckOn | Alarm) for e in effects)
    assert table.suspected() == ()


def test_where_several_are_silent_at_once_everybody_is_asked() -> None:
    table = table_of(*LARGE)
    first = watched(ME, LARGE, lambda _: True)

    effects = wait_until(table, CONFIG.suspect_after_s + CONFIG.look_s + 0.5, 0.0)

    assert {e.peer_id for e in effects if isinstance(e, CheckOn)} == set(LARGE)
    assert {peer for peer in LARGE if liveness(table, peer) is SUSPECT} == first


@given(n=st.integers(1, 2000))
def test_what_a_member_hears_per_second_does_not_grow_with_its_region(n: int) -> None:
    per_second = (n - 1) / (CONFIG.announce_s * grown(n))

    assert per_second <= (QUIET_FROM - 1) / CONFIG.announce_s + 0.1 or grown(n) == MAX_GROWN
    assert 1 <= grown(n) <= grown(n + 1)


@given(st.sets(st.integers(0, 99), min_size=4, max_size=40), st.data())
def test_every_member_is_watched_by_two_that_live(ids: set[int], data: st.DataObject) -> None:
    peers = [PeerId(f"peer-{i}") for i in sorted(ids)]
    dead = data.draw(st.sets(st.sampled_from(peers), max_size=len(peers) - 3))
    living = [peer for peer in peers if peer not in dead]

    watching = {me: watched(me, [p for p in peers if p != me], lambda peer: peer in living) for me in living}

    for peer in peers:
        assert sum(peer in whom for me, whom in watching.items() if me != peer) >= N_WATCHED


def test_who_sleeps_after_it_asked_for_a_sign_of_life_suspects_nobody_for_that() -> None:
    table = table_of(*LARGE)
    asked = {e.peer_id for e in wait_until(table, CONFIG.suspect_after_s + 0.5, 0.0) if isinstance(e, CheckOn)}

    now = CONFIG.suspect_after_s + 0.5 + CONFIG.asleep_after_s + 0.5
    table.handle_timeout(now)

    assert asked and {liveness(table, peer) for peer in asked} == {ALIVE}


def test_a_newcomer_that_chooses_this_region_is_looked_at_as_soon_as_others_in_it() -> None:
    table = Membership(ME, CONFIG, 0.0)
    table.moved("here")
    table.announced(Announcement(A, "run"), 0.0)
    wait_until(table, 5.0, 0.0)  # still in no region: it is given a minute
    table.announced(Announcement(A, "run", seq=1, region="here"), 5.0)

    wait_until(table, 10.5, 5.0)

    assert liveness(table, A) is SUSPECT


def test_the_duties_change_only_with_members_that_hold_the_model_or_train() -> None:
    table = Membership(ME, CONFIG, 0.0)
    seen: list[tuple[bool, bool]] = []

    def after(what: Callable[[], object]) -> None:
        before = table.roles_revision, table.duties_revision
        what()
        seen.append((table.roles_revision != before[0], table.duties_revision != before[1]))

    after(lambda: table.announced(says(A, 1), 0.0))
    after(lambda: table.heard(A, 0.0))
    after(lambda: table.announced(says(A, 2, weight=3.0), 0.0))
    after(lambda: table.announced(says(A, 3, weight=3.0, ready=True), 0.0))
    after(lambda: table.announced(says(A, 4, weight=3.0, ready=True), 0.0))
    after(lambda: table.lost(A, 0.1))
    after(lambda: table.heard(A, 0.2))
    after(lambda: table.announced(says(A, 5, weight=3.0), 0.3))
    after(lambda: table.announced(says(A, 6, leaving=True), 0.4))

    newcomer = [(True, False)] * 3
    owner = [(True, True), (False, False), (True, False), (True, False), (True, True)]
    assert seen == [*newcomer, *owner, (True, False)]


def test_what_changes_no_duty_changes_no_role() -> None:
    table, roles = Membership(ME, CONFIG, 0.0), RegionRoles("run")
    table.moved("home")

    def now() -> tuple[Roles, Roles]:
        everyone = [believed(member, "home") for member in table.counted()]
        return roles.of("home", lambda: everyone, table.duties_revision), Roles().renewed("run", everyone, "home", frozenset())

    for seq, changes in enumerate(({}, {"ready": True}, {"ready": True, "training": True}, {"weight": 2.0}, {"ready": True})):
        for met in (False, True):
            if met:
                table.heard(A, float(seq))
            else:
                table.announced(says(A, seq, region="home", **changes), float(seq))
            kept, made = now()
            assert (kept.eligible, kept.ready, kept.training, kept.forwarders) == (
                made.eligible, made.ready, made.training, made.forwarders,
            )  # fmt: skip
