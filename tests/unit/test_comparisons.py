"""When a member is asked where its chain and this peer's part, and what follows from the answer."""

from legion_p2p.core.announcement import MAX_MEMBERS
from legion_p2p.core.comparisons import ASK_EVERY_S, LOOK_EVERY_S, MAX_FETCHED_BYTES, Comparisons, parting
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import OTHER, UNKNOWN, State

A, B = PeerId("a"), PeerId("b")
STATES = [State(0, version, bytes([version]) * 32) for version in (4, 5, 6)]


def test_a_member_is_looked_at_now_and_then_and_asked_rarely() -> None:
    comparisons = Comparisons()

    assert comparisons.may_look(A, 0.0) and not comparisons.may_look(A, LOOK_EVERY_S - 0.1)
    assert comparisons.may_look(B, 1.0), "each for itself"
    assert comparisons.may_look(A, LOOK_EVERY_S)
    comparisons.asked(A, LOOK_EVERY_S)
    assert not comparisons.may_look(A, LOOK_EVERY_S + ASK_EVERY_S - 0.1)
    assert comparisons.may_look(A, LOOK_EVERY_S + ASK_EVERY_S)


def test_the_books_hold_as_many_members_as_there_may_be() -> None:
    comparisons = Comparisons()
    for i in range(MAX_MEMBERS + 50):
        comparisons.may_look(PeerId(f"p{i}"), 0.0)
        comparisons.asked(PeerId(f"p{i}"), 0.0)

    assert len(comparisons._looked_at) == len(comparisons._asked_at) == MAX_MEMBERS


def test_chains_part_after_the_newest_state_that_both_came_through() -> None:
    assert parting(STATES, [200, 100, OTHER]) == STATES[1]
    assert parting(STATES, [300, 200, 0]) == STATES[2]
    assert parting(STATES, [UNKNOWN, UNKNOWN, OTHER]) is None
    assert parting(STATES, []) is None and parting([], [1, 2, 3]) is None


def test_a_member_that_would_send_too_much_is_not_asked_for_it() -> None:
    assert parting(STATES, [0, MAX_FETCHED_BYTES, OTHER]) == STATES[1]
    assert parting(STATES, [0, MAX_FETCHED_BYTES + 1, OTHER]) is None
