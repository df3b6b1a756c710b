"""A port that a router forwards: when it is asked for, renewed, and no longer counted on."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.port_lease import FIRST_PAUSE_S, MAX_PAUSE_S, RENEW_S, RETRY_S, Forwarding, PortLease


def test_a_granted_port_is_renewed_before_half_of_its_time():
    lease = PortLease(100.0)
    assert lease.next_deadline() == 100.0

    assert lease.granted(Forwarding(4710, 3600.0), 101.0)
    assert lease.next_deadline() == 101.0 + RENEW_S
    assert not lease.granted(Forwarding(4710, 60.0), 701.0)
    assert lease.next_deadline() == 731.0
    assert lease.granted(Forwarding(4711, float("inf")), 731.0)


def test_a_renewal_that_fails_is_repeated_until_the_time_is_over():
    lease = PortLease(0.0)
    lease.granted(Forwarding(4710, 100.0), 0.0)

    lease.refused(50.0)
    assert lease.held is not None and lease.next_deadline() == 50.0 + RETRY_S
    lease.refused(80.0)
    assert lease.next_deadline() == 100.0
    lease.refused(100.0)
    assert lease.held is None


def test_where_no_router_forwards_anything_it_is_asked_ever_more_rarely():
    lease, now, pauses = PortLease(0.0), 0.0, []
    for _ in range(10):
        lease.refused(now)
        pauses.append(lease.next_deadline() - now)
        now = lease.next_deadline()

    assert pauses[0] == FIRST_PAUSE_S and pauses == sorted(pauses) and pauses[-1] == MAX_PAUSE_S


def test_in_another_network_nothing_is_held_and_the_router_is_asked_at_once():
    lease = PortLease(0.0)
    lease.granted(Forwarding(4710, 3600.0), 0.0)

    lease.moved(50.0)

    assert lease.held is None and lease.next_deadline() == 50.0


@given(st.lists(st.tuples(st.floats(0.1, 1000), st.sampled_from(["granted", "refused"]), st.floats(1, 10_000)), max_size=50))
def test_no_port_counts_for_longer_than_the_router_granted_it(events):
    lease, now, ends_at = PortLease(0.0), 0.0, 0.0
    for passed_s, event, lifetime_s in events:
        now += passed_s
        if event == "granted":
            lease.granted(Forwarding(4710, lifetime_s), now)
            ends_at = now + lifetime_s
        else:
            lease.refused(now)
        lease.expire(now)
        assert lease.held is None or now < ends_at
        assert lease.next_deadline() > now
