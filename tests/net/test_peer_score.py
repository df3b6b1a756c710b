"""The score of a peer: misbehaviour adds up, fades, and ends in a refusal."""

import pytest

from legion_p2p.net.limits import MAX_SCORE, MAX_SCORED_PEERS, REFUSAL_S, SCORE_HALF_LIFE_S
from legion_p2p.net.peer_score import PeerScore


def test_mistakes_add_up_to_a_refusal_that_ends():
    scores = PeerScore()
    outcomes = [scores.misbehaved("p", 1.0, now=0.0) for _ in range(int(MAX_SCORE))]

    assert outcomes == [False] * (int(MAX_SCORE) - 1) + [True]
    assert scores.is_refused("p", REFUSAL_S - 1)
    assert not scores.is_refused("p", REFUSAL_S + 1)
    assert scores.score("p", REFUSAL_S + 1) == 0


def test_a_mistake_counts_half_after_a_half_life():
    scores = PeerScore()
    scores.misbehaved("p", 4.0, now=0.0)

    assert scores.score("p", SCORE_HALF_LIFE_S) == pytest.approx(2.0)


def test_a_mistake_now_and_then_is_forgiven_for_ever():
    scores = PeerScore()

    assert not any(scores.misbehaved("p", 1.0, now=n * SCORE_HALF_LIFE_S) for n in range(1000))


def test_one_peers_mistakes_are_not_anothers():
    scores = PeerScore()
    scores.misbehaved("p", MAX_SCORE, now=0.0)

    assert scores.is_refused("p", 0.0)
    assert not scores.is_refused("q", 0.0)


def test_invented_identities_do_not_use_up_memory():
    scores = PeerScore()
    for n in range(2 * MAX_SCORED_PEERS):
        scores.misbehaved(f"a{n}", 1.0, now=0.0)
        scores.misbehaved(f"b{n}", MAX_SCORE, now=0.0)

    assert len(scores._score) == len(scores._refused_until) == MAX_SCORED_PEERS
