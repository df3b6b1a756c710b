"""The reach that a peer announces: worse at once, better when it lasts."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.reach import Reach
from legion_p2p.core.steady_reach import FIRST_PAUSE_S, FORGET_S, MAX_PAUSE_S, SteadyReach

PUBLIC, PUNCHABLE, UNKNOWN, RELAYED = Reach.PUBLIC, Reach.PUNCHABLE, Reach.UNKNOWN, Reach.RELAYED
RANK = {PUBLIC: 0, PUNCHABLE: 0, UNKNOWN: 1, RELAYED: 2}


def test_the_first_that_is_found_is_announced_at_once():
    assert SteadyReach().look(PUBLIC, 1.0) is PUBLIC
    assert SteadyReach().look(RELAYED, 1.0) is RELAYED


def test_what_gets_worse_is_announced_at_once_and_what_gets_better_once_it_has_lasted():
    steady = SteadyReach()
    steady.look(PUBLIC, 0.0)

    assert steady.look(RELAYED, 10.0) is RELAYED
    assert steady.look(PUBLIC, 11.0) is RELAYED
    assert steady.look(PUBLIC, 11.0 + FIRST_PAUSE_S - 0.1) is RELAYED
    assert steady.look(PUBLIC, 11.0 + FIRST_PAUSE_S) is PUBLIC


def test_a_moment_of_better_reach_counts_from_the_beginning_the_next_time():
    steady = SteadyReach()
    steady.look(PUBLIC, 0.0)
    steady.look(RELAYED, 1.0)

    steady.look(PUBLIC, 2.0)
    steady.look(RELAYED, 8.0)

    assert steady.look(PUBLIC, 9.0) is RELAYED
    assert steady.look(PUBLIC, 8.9 + FIRST_PAUSE_S) is RELAYED
    assert steady.look(PUBLIC, 9.0 + FIRST_PAUSE_S) is PUBLIC


def test_what_is_as_good_is_announced_at_once():
    steady = SteadyReach()
    steady.look(PUBLIC, 0.0)

    assert steady.look(PUNCHABLE, 1.0) is PUNCHABLE
    assert steady.look(PUBLIC, 2.0) is PUBLIC


def test_each_time_that_it_gets_worse_doubles_the_pause_and_a_long_quiet_time_forgets_them():
    steady, now, pauses = SteadyReach(), 0.0, []
    for _ in range(10):
        steady.look(RELAYED, now)
        began = now
        while steady.look(PUBLIC, now) is RELAYED:
            now += 1.0
        pauses.append(now - began)
        now += 1.0

    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S] and max(pauses) == MAX_PAUSE_S
    now += FORGET_S
    steady.look(RELAYED, now)
    began = now
    while steady.look(PUBLIC, now) is RELAYED:
        now += 1.0
    assert now - began == FIRST_PAUSE_S


@given(st.lists(st.tuples(st.sampled_from(Reach), st.integers(1, 30)), max_size=300))
def test_however_it_wavers_a_peer_that_is_announced_as_reachable_was_found_so_and_changes_are_few(found):
    steady, now, announced = SteadyReach(), 0.0, [Reach.UNKNOWN]
    last = Reach.UNKNOWN
    for reach, lasts_s in found:
        for _ in range(lasts_s):
            said = steady.look(reach, now)
            assert said is reach or RANK[reach] < RANK[said]  # never better than it is
            if RANK[said] != RANK[last]:
                announced.append(said)
            last, now = said, now + 1.0

    n_better = sum(RANK[b] < RANK[a] for a, b in pairwise(announced))
    assert n_better <= 2 + now / FIRST_PAUSE_S
    assert n_better <= 12 + now / MAX_PAUSE_S
