"""The learning rate of `legion-peer`: how it rises, and how it falls towards the end of a run."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.learning_rate import annealed, learning_rate
from legion_p2p.core.run import InnerSpec

PLAIN = InnerSpec(learning_rate=1.0, warmup_steps=0)


def test_it_rises_over_the_own_steps_of_a_peer_wherever_the_run_is():
    inner = msgspec.structs.replace(PLAIN, warmup_steps=10)

    assert [learning_rate(inner, step, 5000) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]


def test_where_it_is_not_known_when_the_run_ends_it_stays():
    assert learning_rate(PLAIN, 10**6, 10**6) == 1.0


def test_it_falls_to_nothing_over_the_last_fifth_of_a_run_that_has_a_target():
    rates = [learning_rate(PLAIN, 500, 500, done) for done in (0.0, 0.8, 0.85, 0.95, 1.0, 1.5)]

    assert rates == pytest.approx([1.0, 1.0, 0.5, 1 - 0.75**0.5, 0.0, 0.0])


def test_a_run_that_says_how_its_rate_falls_is_not_annealed_beside_that():
    inner = msgspec.structs.replace(PLAIN, decay_steps=1000)

    assert learning_rate(inner, 1000, 1000, done=1.0) == pytest.approx(0.1)


def test_a_run_without_annealing_keeps_its_rate_to_the_end():
    inner = msgspec.structs.replace(PLAIN, anneal=0.0)

    assert learning_rate(inner, 1000, 1000, done=1.0) == 1.0


@given(st.floats(0, 1), st.floats(0, 2), st.floats(0, 2))
def test_it_never_rises_towards_the_end_and_never_becomes_negative(anneal: float, a: float, b: float):
    earlier, later = sorted((a, b))

    assert 0.0 <= annealed(anneal, later) <= annealed(anneal, earlier) <= 1.0
