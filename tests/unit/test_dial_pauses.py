"""Addresses that do not answer are dialed ever more seldom, whoever names them."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.dial_pauses import FORGET_S, FREE_FAILURES, MAX_HOSTS, MAX_PAUSE_S, DialPauses

VICTIM = "11.1.0.1"


def test_a_thousand_claims_to_be_at_an_address_of_somebody_else_make_few_dials():
    pauses = DialPauses()

    n_dials, now = 0, 0.0
    for _ in range(1000):  # one claim a second
        now += 1.0
        if pauses.allows(VICTIM, now):
            n_dials += 1
            pauses.failed(VICTIM, now)

    assert n_dials <= FREE_FAILURES + 6 + 1000 / MAX_PAUSE_S


def test_a_host_that_answers_is_free_again_and_others_never_waited():
    pauses = DialPauses()
    for _ in range(20):
        pauses.failed(VICTIM, 0.0)

    assert not pauses.allows(VICTIM, 1.0)
    assert pauses.allows("11.2.0.1", 1.0)
    pauses.succeeded(VICTIM)
    assert pauses.allows(VICTIM, 1.0)


def test_old_failures_and_those_of_another_network_are_forgotten():
    pauses = DialPauses()
    for _ in range(20):
        pauses.failed(VICTIM, 0.0)

    pauses.failed(VICTIM, FORGET_S)
    assert pauses.allows(VICTIM, FORGET_S)
    for _ in range(20):
        pauses.failed(VICTIM, FORGET_S)
    pauses.forget()
    assert pauses.allows(VICTIM, FORGET_S)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 10)), max_size=200))
def test_law_memory_is_bounded_and_no_host_waits_longer_than_the_longest_pause(failures):
    pauses, now = DialPauses(), 0.0

    for host, pause_s in failures:
        now += pause_s
        pauses.failed(str(host), now)

    assert len(pauses._failed) <= MAX_HOSTS
    assert all(pauses.allows(str(host), now + MAX_PAUSE_S) for host, _ in failures)
