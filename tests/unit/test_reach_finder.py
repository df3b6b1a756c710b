"""What a peer concludes of its own reach, from what others saw and did."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.dial_backs import MAX_IN_ALL, MAX_PER_NETWORK, MAX_PORTS, PAUSE_S, WINDOW_S, DialBacks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.punches import AGREE_PAUSE_S, FIRST_S, MAX_AGREED, MAX_AT_ONCE, PAUSES_S, Punches
from legion_p2p.core.reach import NatKind, Reach
from legion_p2p.core.reach_finder import (
    ASK_PAUSE_S,
    IN_DOUBT,
    MAX_OBSERVERS,
    MAX_VOTERS,
    SEEN_S,
    VOTE_S,
    WANTED_VOTERS,
    OwnReachFinder,
    network_of,
)

A, B, C, D = (PeerId(name) for name in "ABCD")
HOSTS = {A: "11.1.0.1", B: "11.2.0.1", C: "11.3.0.1", D: "11.4.0.1"}
OURS = "11.9.0.1"


def test_before_anybody_has_tried_reach_is_unknown():
    assert OwnReachFinder().verdict(0.0).reach is Reach.UNKNOWN


def test_a_peer_that_listens_nowhere_knows_that_only_relays_lead_to_it():
    finder = OwnReachFinder(listens=False)

    assert (finder.verdict(0.0).reach, finder.verdict(0.0).why) == (Reach.RELAYED, "this peer listens nowhere")
    assert finder.to_ask(HOSTS, 0.0) == ()


def test_a_dial_that_arrived_proves_an_address():
    finder = OwnReachFinder()

    finder.arrived(HOSTS[A], f"/ip4/{OURS}/tcp/1", 0.0)
    verdict = finder.verdict(1.0)

    assert verdict.reach is Reach.PUBLIC
    assert verdict.proven == (f"/ip4/{OURS}/tcp/1",)
    assert "1 of 1 other networks dialed" in verdict.why


def test_once_a_router_forwards_a_port_those_that_could_not_dial_before_are_asked_again_at_once():
    finder = OwnReachFinder()
    candidates = {A: HOSTS[A], B: HOSTS[B]}
    finder.to_ask(candidates, 0.0)
    finder.failed(HOSTS[A], 1.0)
    finder.arrived(HOSTS[B], f"/ip4/{OURS}/tcp/1", 1.0)
    assert finder.to_ask(candidates, 2.0) == ()

    finder.opened()

    assert finder.to_ask(candidates, 3.0) == (A,)
    assert finder.verdict(3.0).reach is Reach.PUBLIC


def test_a_liar_who_says_that_dials_fail_is_outvoted_and_a_crowd_in_one_network_has_one_vote():
    finder = OwnReachFinder()

    for n in range(100):
        finder.failed(f"6.6.6.{n}", 0.0)
    assert finder.verdict(0.0).reach is Reach.RELAYED
    finder.arrived(HOSTS[A], "", 0.0)

    assert finder.verdict(1.0).reach is Reach.PUBLIC


def behind_a_nat() -> OwnReachFinder:
    """Where two others see it come from somewhere else than where it is."""
    finder = OwnReachFinder(own_hosts=frozenset({"192.168.1.2"}))
    for peer in (A, B):
        finder.seen(peer, OURS, 4710, True, 0.0)
    return finder


def test_behind_a_nat_it_proves_nothing_that_hosts_get_through_that_were_dialed_before():
    finder = behind_a_nat()

    for peer in (A, B, C):
        finder.arrived(HOSTS[peer], f"/ip4/{OURS}/tcp/4710", 1.0, was_dialed=True)

    assert (finder.verdict(1.0).reach, finder.verdict(1.0).why) == (Reach.PUNCHABLE, IN_DOUBT)
    assert finder.is_in_doubt(1.0)
    assert finder.verdict(1.0).proven == ()
    assert finder.to_ask(HOSTS, 2.0) == (D,)  # others are still wanted, and nobody is asked twice


def test_one_host_that_was_not_dialed_decides_whatever_those_say_that_were():
    through, not_through = behind_a_nat(), behind_a_nat()
    for finder in (through, not_through):
        for peer in (A, B, C):
            finder.arrived(HOSTS[peer], "", 1.0, was_dialed=True)

    through.arrived(HOSTS[D], f"/ip4/{OURS}/tcp/4710", 2.0)
    not_through.failed(HOSTS[D], 2.0)

    assert through.verdict(2.0).reach is Reach.PUBLIC
    assert not_through.verdict(2.0).reach is Reach.PUNCHABLE
    assert "of 1 other networks could not dial" in not_through.verdict(2.0).why


def test_a_host_that_got_through_before_it_was_dialed_stays_a_proof_for_a_while():
    finder = behind_a_nat()
    finder.arrived(HOSTS[A], "", 1.0)

    finder.arrived(HOSTS[A], "", 2.0, was_dialed=True)
    assert finder.verdict(2.0).reach is Reach.PUBLIC

    finder.seen(B, OURS, 4710, True, 2.0 + VOTE_S)
    finder.arrived(HOSTS[A], "", 2.0 + VOTE_S, was_dialed=True)
    assert finder.verdict(2.0 + VOTE_S).reach is Reach.PUNCHABLE


@pytest.mark.parametrize("why_not", ["no NAT", "a port is forwarded"])
def test_without_a_nat_or_with_a_forwarded_port_whoever_gets_through_is_a_proof(why_not):
    finder = OwnReachFinder(own_hosts=frozenset({OURS})) if why_not == "no NAT" else behind_a_nat()
    finder.seen(A, OURS, 4710, True, 0.0)
    if why_not == "a port is forwarded":
        finder.opened()

    finder.arrived(HOSTS[A], "", 1.0, was_dialed=True)

    assert finder.verdict(1.0).reach is Reach.PUBLIC
    assert not finder.is_in_doubt(1.0)


def test_the_kind_of_nat_follows_from_the_ports_that_several_others_see():
    cone, symmetric, alone = OwnReachFinder(), OwnReachFinder(), OwnReachFinder()
    for finder in (cone, symmetric, alone):
        finder.failed(HOSTS[A], 0.0)
        finder.seen(A, OURS, 4000, True, 0.0)
    cone.seen(B, OURS, 4000, True, 0.0)
    symmetric.seen(B, OURS, 4001, True, 0.0)
    alone.seen(B, OURS, 5555, False, 0.0)  # of a connection from another port: it says nothing

    assert [(f.verdict(1.0).reach, f.verdict(1.0).nat) for f in (cone, symmetric, alone)] == [
        (Reach.PUNCHABLE, NatKind.CONE), (Reach.RELAYED, NatKind.SYMMETRIC), (Reach.RELAYED, NatKind.UNKNOWN),
    ]  # fmt: skip
    assert [f.outside(1.0) for f in (cone, symmetric, alone)] == [(OURS, 4000), None, (OURS, 4000)]


def test_a_firewall_without_nat_is_told_from_a_nat():
    finder = OwnReachFinder(own_hosts=frozenset({OURS}))
    finder.failed(HOSTS[A], 0.0)
    finder.seen(A, OURS, 4000, True, 0.0)

    assert (finder.verdict(0.0).reach, finder.verdict(0.0).nat) == (Reach.PUNCHABLE, NatKind.NONE)


@pytest.mark.parametrize("elsewhere", ["11.77.0.1", "99.0.0.1"])
def test_another_address_outside_makes_all_void_at_once(elsewhere):
    finder = OwnReachFinder()
    finder.arrived(HOSTS[A], "", 0.0)
    for peer in (A, B):
        assert not finder.seen(peer, OURS, 4000, True, 0.0)

    assert not finder.seen(A, elsewhere, 4000, True, 20.0)  # one alone may lie
    assert finder.seen(B, elsewhere, 4000, True, 20.0)

    assert finder.verdict(20.0).reach is Reach.UNKNOWN
    assert finder.to_ask(HOSTS, 20.0)


def test_other_addresses_of_this_machine_make_all_void_at_once():
    finder = OwnReachFinder()
    assert not finder.moved(frozenset({"192.168.1.2"}))  # the first look
    finder.arrived(HOSTS[A], "", 0.0)

    assert not finder.moved(frozenset({"192.168.1.2"}))
    assert finder.moved(frozenset({"10.0.0.3"}))

    assert finder.verdict(1.0).reach is Reach.UNKNOWN


def test_three_networks_are_asked_each_by_one_peer_and_again_when_their_votes_are_old():
    finder = OwnReachFinder()
    candidates = {**HOSTS, PeerId("neighbour of A"): "11.1.0.2"}

    asked = finder.to_ask(candidates, 0.0)
    for peer in asked:
        finder.failed(HOSTS[peer], 1.0)

    assert len(asked) == WANTED_VOTERS
    assert finder.to_ask(candidates, ASK_PAUSE_S + 1) == ()
    assert len(finder.to_ask(candidates, VOTE_S + 1)) == WANTED_VOTERS


def test_a_peer_that_does_not_answer_is_asked_no_more_often():
    finder = OwnReachFinder()

    assert finder.to_ask({A: HOSTS[A]}, 0.0) == (A,)
    assert finder.to_ask({A: HOSTS[A]}, ASK_PAUSE_S - 1) == ()
    assert finder.to_ask({A: HOSTS[A]}, ASK_PAUSE_S) == (A,)


def test_old_votes_and_sights_count_no_more():
    finder = OwnReachFinder()
    finder.arrived(HOSTS[A], "", 0.0)
    finder.seen(A, OURS, 4000, True, 0.0)

    assert finder.verdict(2 * VOTE_S).reach is Reach.UNKNOWN
    assert finder.outside(SEEN_S) is None


@given(
    st.lists(st.tuples(st.sampled_from(["arrived", "failed", "seen"]), st.integers(0, 30), st.integers(1, 3), st.floats(0, 90)))
)
def test_law_nothing_grows_and_public_needs_a_dial_that_arrived(steps):
    finder = OwnReachFinder()
    now, arrivals = 0.0, 0

    for what, n, port, pause_s in steps:
        now += pause_s
        if what == "arrived":
            finder.arrived(f"11.{n}.0.1", "", now)
            arrivals += 1
        elif what == "failed":
            finder.failed(f"11.{n}.0.1", now)
        else:
            finder.seen(PeerId(str(n)), OURS, port, True, now)

        assert finder.verdict(now).reach is not Reach.PUBLIC or arrivals
        assert len(finder._votes) <= MAX_VOTERS and len(finder._sights) <= MAX_OBSERVERS


def test_networks_are_what_one_party_may_have_all_of():
    assert network_of("11.1.2.3") == network_of("11.1.2.250") != network_of("11.1.3.3")
    assert network_of("2001:db8:1:2::3") == network_of("2001:db8:1:ffff::") != network_of("2001:db8:2::")


def test_one_peer_is_dialed_back_now_and_then_only():
    guard = DialBacks()

    assert guard.ask(A, HOSTS[A], 1, 0.0) == ""
    assert "one request" in guard.ask(A, HOSTS[A], 1, PAUSE_S - 1)
    assert guard.ask(A, HOSTS[A], 1, PAUSE_S) == ""
    assert "ports" in guard.ask(B, HOSTS[B], MAX_PORTS + 1, 0.0)
    assert "ports" in guard.ask(B, HOSTS[B], 0, 0.0)


def test_a_flood_of_requests_to_dial_back_is_bounded_for_each_network_and_in_all():
    guard = DialBacks()

    of_one = [guard.ask(PeerId(f"{n}"), "6.6.6.6", 1, 1.0) for n in range(200)]
    of_all = [guard.ask(PeerId(f"x{n}"), f"7.7.{n}.7", 1, 1.0) for n in range(200)]

    assert of_one.count("") == MAX_PER_NETWORK
    assert of_one.count("") + of_all.count("") == MAX_IN_ALL
    assert guard.ask(A, HOSTS[A], 1, 1.0 + WINDOW_S) == ""


def test_a_peer_behind_a_relay_is_tried_soon_and_after_failures_ever_more_seldom():
    punches = Punches()
    assert punches.poll([A], 0.0) is None
    assert punches.poll([A], FIRST_S) == A
    assert punches.poll([A], FIRST_S) is None  # one attempt at a time

    now, pauses = FIRST_S, []
    for _ in range(len(PAUSES_S) + 2):
        punches.failed(A, now)
        began = now
        while punches.poll([A], now) is None:
            now += 1.0
        pauses.append(now - began)

    assert pauses == [*PAUSES_S, PAUSES_S[-1], PAUSES_S[-1]]


def test_few_peers_are_tried_at_once_and_another_network_makes_all_worth_it_again():
    punches = Punches()
    crowd = [PeerId(str(n)) for n in range(20)]
    punches.poll(crowd, 0.0)
    for peer in crowd:
        punches.poll([peer], 0.0)

    trying = [punches.poll(crowd, 10.0) for _ in range(MAX_AT_ONCE + 3)]
    for peer in trying[:MAX_AT_ONCE]:
        punches.failed(peer, 10.0)
    punches.forget()
    punches.poll(crowd, 11.0)

    assert trying[MAX_AT_ONCE:] == [None] * 3
    assert punches.poll(crowd, 11.0 + FIRST_S) == crowd[0]


def test_a_flood_of_offers_to_punch_at_addresses_of_somebody_else_makes_few_dials():
    punches = Punches()

    of_one = [punches.agrees(A, n / 10) for n in range(500)]
    of_crowd = [punches.agrees(PeerId(str(n)), 50.0) for n in range(500)]

    assert of_one.count(True) == 500 / 10 / AGREE_PAUSE_S
    assert of_one.count(True) + of_crowd.count(True) == MAX_AGREED
    assert punches.agrees(B, 50.0 + 60.0)
