"""Offences, and what they add up to."""

import pytest

from legion_p2p.net.limits import MAX_SCORED_PEERS, OFFENCE_HALF_LIFE_S, OFFENCE_THRESHOLD, REFUSAL_S
from legion_p2p.net.peer_score import PeerScore


def test_offences_add_up_to_a_refusal_that_ends():
    standing = PeerScore()
    outcomes = [standing.offend("p", 1.0, now=0.0) for _ in range(int(OFFENCE_THRESHOLD))]

    assert outcomes == [False] * (int(OFFENCE_THRESHOLD) - 1) + [True]
    assert standing.is_refused("p", REFUSAL_S - 1)
    assert not standing.is_refused("p", REFUSAL_S + 1)
    assert standing.score("p", REFUSAL_S + 1) == 0


def test_an_offence_counts_half_after_a_half_life():
    standing = PeerScore()
    standing.offend("p", 4.0, now=0.0)

    assert standing.score("p", OFFENCE_HALF_LIFE_S) == pytest.approx(2.0)


def test_an_offence_now_and_then_is_forgiven_for_ever():
    standing = PeerScore()

    assert not any(standing.offend("p", 1.0, now=n * OFFENCE_HALF_LIFE_S) for n in range(1000))


def test_one_peers_offences_are_not_anothers():
    standing = PeerScore()
    standing.offend("p", OFFENCE_THRESHOLD, now=0.0)

    assert standing.is_refused("p", 0.0)
    assert not standing.is_refused("q", 0.0)


def test_invented_identities_do_not_use_up_memory():
    standing = PeerScore()
    for n in range(2 * MAX_SCORED_PEERS):
        standing.offend(f"a{n}", 1.0, now=0.0)
        standing.offend(f"b{n}", OFFENCE_THRESHOLD, now=0.0)

    assert len(standing._score) == len(standing._refused_until) == MAX_SCORED_PEERS
