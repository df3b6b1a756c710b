"""What a relay lets pass: reservations, circuits, and how fast."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.relay_ledger import (
    HOUR_S,
    MAX_LIMIT,
    MAX_PER_HOST,
    RESERVATION_S,
    TRICKLE_BPS,
    RelayLedger,
    RelayLimits,
    parse_relay,
)
from legion_p2p.errors import UsageError

A, B, C = (PeerId(name) for name in "ABC")
PIECE = 16_384


def test_a_peer_that_has_reserved_is_reached_by_a_circuit():
    ledger = RelayLedger(RelayLimits())

    assert ledger.open(A, B, 0.0) != ""
    assert ledger.reserve(B, "1.2.3.4", 0.0) == ""
    assert ledger.open(A, B, 1.0) == ""

    assert (ledger.n_reservations, ledger.n_circuits, ledger.n_refused) == (1, 1, 1)
    ledger.close(A, B)
    assert ledger.n_circuits == 0


def test_a_reservation_ends_unless_it_is_renewed():
    ledger = RelayLedger(RelayLimits())
    ledger.reserve(B, "1.2.3.4", 0.0)
    ledger.reserve(C, "1.2.3.4", 0.0)

    ledger.reserve(B, "1.2.3.4", RESERVATION_S - 1)

    assert ledger.holds(B, RESERVATION_S + 1)
    assert not ledger.holds(C, RESERVATION_S + 1)


def test_a_full_relay_refuses_politely_and_says_why():
    ledger = RelayLedger(RelayLimits(max_reservations=1, max_circuits=2, max_circuits_per_peer=1))
    ledger.reserve(B, "1.2.3.4", 0.0)

    assert "relays for 1 peers already" in ledger.reserve(C, "5.6.7.8", 0.0)
    assert ledger.reserve(B, "1.2.3.4", 1.0) == ""  # a renewal takes no further place
    assert ledger.open(A, B, 1.0) == ""
    assert "circuits of one peer" in ledger.open(C, B, 1.0)


def test_one_address_that_invents_identities_does_not_take_all_places():
    ledger = RelayLedger(RelayLimits())

    refusals = [ledger.reserve(PeerId(f"peer {n}"), "6.6.6.6", 0.0) for n in range(MAX_PER_HOST + 10)]

    assert refusals.count("") == MAX_PER_HOST
    assert ledger.reserve(B, "1.2.3.4", 0.0) == ""


def test_peers_that_send_at_the_same_time_share_the_rate():
    ledger = RelayLedger(RelayLimits(rate_bps=8 * PIECE))  # a piece a second

    alone = ledger.pass_at(A, PIECE, 0.0)
    both = [ledger.pass_at(peer, PIECE, 1.0) for peer in (B, A)]

    assert alone == 1.0
    assert both == [3.0, 3.0]


def test_a_peer_that_used_up_its_hour_gets_a_trickle_until_the_next():
    ledger = RelayLedger(RelayLimits(rate_bps=1e9, hourly_bytes=PIECE))

    ledger.pass_at(A, PIECE, 0.0)
    begun = ledger.pass_at(A, PIECE, 1.0)
    next_hour = ledger.pass_at(A, PIECE, HOUR_S + 1)

    assert begun == pytest.approx(1.0 + 8 * PIECE / TRICKLE_BPS)
    assert next_hour == pytest.approx(HOUR_S + 1 + 8 * PIECE / 1e9)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0, 0.5), st.integers(1, PIECE)), min_size=1, max_size=60))
def test_law_no_more_passes_than_the_rate_allows(pieces):
    rate_bps = 1e6
    ledger = RelayLedger(RelayLimits(rate_bps=rate_bps))
    free_at = dict.fromkeys((A, B, C), 0.0)

    now, n_bytes, last = 0.0, 0, 0.0
    for peer, pause_s, size in pieces:
        now = max(now + pause_s, free_at[peer])  # a circuit reads on when what it read before has passed
        free_at[peer] = ledger.pass_at(peer, size, now)
        assert free_at[peer] > now
        n_bytes += size
        last = max(last, free_at[peer])

    assert 8 * n_bytes <= rate_bps * last + 3 * 8 * PIECE
    assert ledger.relayed_bytes == n_bytes


def test_what_a_person_allows_is_read():
    assert parse_relay("no") is None
    assert parse_relay("2mbit") == RelayLimits(rate_bps=2e6)
    assert parse_relay("1mbit,peers=3,circuits=9,hourly=2gb") == RelayLimits(
        rate_bps=1e6, max_reservations=3, max_circuits=9, hourly_bytes=2_000_000_000
    )


@pytest.mark.parametrize(
    "text", ["", "yes", "10", "1mbit,peers=0", f"1mbit,peers={MAX_LIMIT + 1}", "1mbit,x=1", "1mbit,hourly=9"]
)
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError):
        parse_relay(text)


def test_it_is_known_what_is_carried_for_whom_and_why_something_was_refused():
    ledger = RelayLedger(RelayLimits())
    ledger.open(A, B, 0.0)
    ledger.open(A, C, 0.0)
    ledger.reserve(B, "1.2.3.4", 0.0)
    ledger.open(A, B, 1.0)
    ledger.pass_at(A, PIECE, 2.0)

    assert ledger.circuits() == [(A, B, 1)]
    assert (ledger.hourly_bytes(A), ledger.hourly_bytes(C)) == (PIECE, 0)
    assert dict(ledger.refusals) == {"that peer has no reservation here": 2}
