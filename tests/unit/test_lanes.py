"""To whom a bulk lane is tried, and whose connection is let in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.lanes import (
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    MAX_PEERS,
    MAX_TICKETS,
    MAX_TICKETS_PER_PEER,
    TICKET_S,
    LaneAttempts,
    LaneTicket,
    LaneTickets,
)

A, B = PeerId("a"), PeerId("b")


def test_a_peer_is_tried_at_once_and_after_a_failure_only_when_a_pause_is_over():
    attempts = LaneAttempts()

    assert attempts.may_try(A, now=0.0)
    attempts.failed(A, now=0.0)
    assert not attempts.may_try(A, now=FIRST_PAUSE_S - 0.01)
    assert attempts.may_try(A, now=FIRST_PAUSE_S)
    assert attempts.may_try(B, now=0.0)


def test_each_pause_is_twice_as_long_up_to_the_longest():
    attempts = LaneAttempts()
    now, pauses = 0.0, []

    for _ in range(10):
        attempts.failed(A, now)
        pause_s = next(s for s in (FIRST_PAUSE_S * 2**n for n in range(20)) if attempts.may_try(A, now + min(s, MAX_PAUSE_S)))
        pauses.append(min(pause_s, MAX_PAUSE_S))
        now += pauses[-1]

    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S


def test_a_lane_that_lasted_ends_the_pauses():
    attempts = LaneAttempts()
    for _ in range(5):
        attempts.failed(A, now=0.0)

    attempts.lasted(A)

    assert attempts.may_try(A, now=0.0)
    attempts.failed(A, now=0.0)
    assert attempts.may_try(A, now=FIRST_PAUSE_S)


def test_failures_of_no_more_than_so_many_peers_are_remembered():
    attempts = LaneAttempts()

    for n in range(MAX_PEERS + 1):
        attempts.failed(PeerId(str(n)), now=0.0)

    assert attempts.may_try(PeerId("0"), now=0.0)
    assert not attempts.may_try(PeerId("1"), now=0.0)


def test_a_ticket_lets_in_one_connection():
    tickets = LaneTickets()
    tickets.issue("secret", A, for_own_requests=True, now=0.0)

    assert tickets.redeem("guess", now=1.0) is None
    assert tickets.redeem("secret", now=1.0) == LaneTicket(A, True, TICKET_S)
    assert tickets.redeem("secret", now=1.0) is None


@pytest.mark.parametrize("late_s", [0.0, 100.0])
def test_a_ticket_that_is_too_old_lets_nobody_in(late_s):
    tickets = LaneTickets()
    tickets.issue("secret", A, for_own_requests=False, now=0.0)

    assert tickets.redeem("secret", now=TICKET_S + late_s) is None


def test_a_peer_that_asks_for_too_many_tickets_loses_its_own_first_ones():
    tickets = LaneTickets()
    tickets.issue("of b", B, for_own_requests=False, now=0.0)

    for n in range(MAX_TICKETS_PER_PEER + 1):
        tickets.issue(f"of a {n}", A, for_own_requests=False, now=0.0)

    assert tickets.redeem("of a 0", now=1.0) is None
    assert tickets.redeem("of a 1", now=1.0) is not None
    assert tickets.redeem("of b", now=1.0) is not None


def test_unused_tickets_do_not_pile_up():
    tickets = LaneTickets()

    for n in range(MAX_TICKETS + 10):
        tickets.issue(str(n), PeerId(str(n)), for_own_requests=False, now=0.0)
    assert len(tickets) == MAX_TICKETS

    tickets.issue("later", A, for_own_requests=False, now=TICKET_S)
    assert len(tickets) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans(), st.floats(0, 5)), max_size=40))
def test_no_ticket_is_good_twice_or_for_another_peer(steps):
    tickets, now, owner, used = LaneTickets(), 0.0, {}, set()

    for peer, number, redeems, later_s in steps:
        now += later_s
        name = f"{peer}{number}"
        if redeems:
            ticket = tickets.redeem(name, now)
            if ticket is not None:
                assert name not in used and ticket.peer == owner[name]
                used.add(name)
        else:
            tickets.issue(name, PeerId(peer), for_own_requests=False, now=now)
            owner[name] = peer
            used.discard(name)
