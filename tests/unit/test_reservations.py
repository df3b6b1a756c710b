"""Which relays a peer keeps reservations with."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.reservations import FIRST_REST_S, MAX_CANDIDATES, MAX_REST_S, WANTED, Reservations

A, B, C = (PeerId(name) for name in "ABC")
ALL = frozenset((A, B, C))
HOUR_S = 3600.0


def heard(*relays: PeerId) -> Reservations:
    reservations = Reservations()
    for relay in relays:
        reservations.hear(relay)
    return reservations


def test_two_relays_are_asked_and_no_more():
    reservations = heard(A, B, C)

    asked = [reservations.poll(0.0, ALL) for _ in range(4)]
    reservations.granted(A, HOUR_S, ("/ip4/1.1.1.1/tcp/1",), 1.0)
    reservations.granted(B, HOUR_S, (), 1.0)

    assert asked == [A, B, None, None]
    assert reservations.poll(2.0, ALL) is None
    assert reservations.held(2.0) == {A: ("/ip4/1.1.1.1/tcp/1",), B: ()}


def test_a_lost_relay_is_replaced_at_once():
    reservations = heard(A, B, C)
    for _ in range(2):
        reservations.granted(reservations.poll(0.0, ALL), HOUR_S, (), 0.0)

    replaced_by = reservations.poll(5.0, ALL - {A})

    assert replaced_by == C
    assert set(reservations.held(5.0)) == {B}


def test_a_reservation_is_renewed_before_it_ends_and_holds_until_its_end_if_that_fails():
    reservations = heard(A)
    reservations.granted(reservations.poll(0.0, ALL), 100.0, (), 0.0)

    assert reservations.poll(49.0, ALL) is None
    assert reservations.poll(50.0, ALL) == A
    reservations.failed(A, 51.0)

    assert set(reservations.held(99.0)) == {A}
    assert reservations.poll(51.0 + FIRST_REST_S, ALL) == A
    assert not reservations.held(100.0)


def test_a_relay_that_refuses_rests_longer_each_time():
    reservations = heard(A)
    now, rests = 0.0, []

    for _ in range(12):
        assert reservations.poll(now, ALL) == A
        reservations.failed(A, now)
        began = now
        while reservations.poll(now, ALL) is None:
            now += 1.0
        reservations.failed(A, now)
        rests.append(now - began)
        now += MAX_REST_S

    assert rests[0] == FIRST_REST_S
    assert rests == sorted(rests)
    assert rests[-1] <= MAX_REST_S


def test_a_peer_that_needs_none_any_longer_gives_them_back():
    reservations = heard(A, B)
    reservations.granted(reservations.poll(0.0, ALL), HOUR_S, (), 0.0)

    assert reservations.release() == (A,)
    assert not reservations.held(0.0)


def test_relays_without_end_are_not_remembered():
    reservations = heard(A)
    reservations.granted(reservations.poll(0.0, ALL), HOUR_S, (), 0.0)

    crowd = [PeerId(f"relay {n}") for n in range(3 * MAX_CANDIDATES)]
    for relay in crowd:
        reservations.hear(relay)

    assert set(reservations.held(1.0)) == {A}
    assert len(reservations._relays) == MAX_CANDIDATES


@given(st.lists(st.tuples(st.sampled_from(["poll", "grant", "fail", "lose"]), st.sampled_from([A, B, C]), st.floats(0, 400))))
def test_law_never_more_than_two_are_held_or_asked(steps):
    reservations = heard(A, B, C)
    now, asked = 0.0, set()

    for what, relay, pause_s in steps:
        now += pause_s
        if what == "poll" and (polled := reservations.poll(now, ALL)) is not None:
            assert polled not in asked
            asked.add(polled)
        elif what == "grant" and relay in asked:
            reservations.granted(relay, 600.0, (), now)
            asked.discard(relay)
        elif what == "fail" and relay in asked:
            reservations.failed(relay, now)
            asked.discard(relay)
        elif what == "lose":
            reservations.poll(now, ALL - {relay})  # may ask another one
            asked = {peer for peer in ALL if reservations._relays[peer].asking}

        assert len(set(reservations.held(now)) | asked) <= WANTED
