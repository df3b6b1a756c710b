"""What the members behind one network weigh together, by what others see of their connections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import NO_CONNECTION, ConnectionKind, PeerConnection
from legion_p2p.core.same_network import NETWORK_PUSHES, contradicted, network_at, numbered, shared_weights

A, B, C, D, RELAY, OTHER_RELAY = (PeerId(name) for name in ("a", "b", "c", "d", "relay", "other relay"))


def seen(**hosts: str) -> "dict[PeerId, PeerConnection]":
    """Direct connections to these."""
    return {PeerId(name): PeerConnection(ConnectionKind.DIRECT, host=host) for name, host in hosts.items()}


def behind(relay: PeerId) -> PeerConnection:
    return PeerConnection(ConnectionKind.RELAYED, relay)


def numbers_of(connections: "dict[PeerId, PeerConnection]", *peers: PeerId) -> tuple[int, ...]:
    return numbered(peers, lambda peer: connections.get(peer, NO_CONNECTION))


def test_members_of_one_network_have_one_number_and_the_others_none() -> None:
    connections = seen(a="11.1.2.3", b="12.1.2.3", c="11.1.2.250", d="11.1.3.3")

    assert numbers_of(connections, A, B, C, D) == (1, 0, 1, 0)
    assert numbers_of(connections, A, B, D) == (0, 0, 0)


def test_two_networks_have_two_numbers() -> None:
    connections = seen(a="2600:db8:1:2::3", b="11.1.2.3", c="2600:db8:1:ffff::", d="::ffff:11.1.2.4")

    assert numbers_of(connections, A, B, C, D) == (1, 2, 1, 2)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "192.168.1.7", "10.0.0.4", "172.16.0.1", "100.64.0.9", "169.254.1.1", "fe80::1%eth0", "fd00::1", ""],
)
def test_members_of_this_machine_and_of_private_networks_are_not_put_together(host: str) -> None:
    connections = seen(a=host, b=host)

    assert numbers_of(connections, A, B) == (0, 0)


def test_a_member_that_is_not_connected_is_in_no_network() -> None:
    assert numbers_of({}, A, B) == (0, 0)


def test_members_behind_a_relay_are_in_its_network() -> None:
    connections = {**seen(relay="11.1.2.3", c="11.1.2.9"), A: behind(RELAY), B: behind(RELAY), D: behind(OTHER_RELAY)}

    assert numbers_of(connections, A, B, C, D) == (1, 1, 1, 0)
    assert network_at(D, lambda peer: connections.get(peer, NO_CONNECTION)) == "relay other relay", "where that is all one knows"


def test_many_keys_of_one_host_weigh_as_two_and_all_others_as_before() -> None:
    weights = shared_weights([100.0] * 8, [0, 1, 1, 1, 1, 1, 0, 0])

    assert weights == (100.0, *[40.0] * 5, 100.0, 100.0)
    assert shared_weights([100.0] * 4, [1, 1, 0, 0]) == (100.0,) * 4, "two machines of one household"
    assert shared_weights([], []) == ()


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.integers(0, 3)), min_size=1, max_size=12))
def test_no_network_weighs_more_than_its_bound_or_than_it_did(pushes: list[tuple[float, int]]) -> None:
    weights, numbers = [w for w, _ in pushes], [n for _, n in pushes]

    shared = shared_weights(weights, numbers)

    limit = NETWORK_PUSHES * sorted(weights)[(len(weights) - 1) // 2]
    assert all(after <= before for after, before in zip(shared, weights, strict=True))
    assert all(after == before for after, before, n in zip(shared, weights, numbers, strict=True) if not n)
    for number in set(numbers) - {0}:
        together = sum(w for w, n in zip(shared, numbers, strict=True) if n == number)
        assert together <= limit * (1 + 1e-9)


ME = PeerId("me")


def test_two_that_a_member_sees_in_two_networks_are_not_both_in_its_own() -> None:
    connections = seen(a="11.1.2.3", b="12.1.2.3", c="11.1.2.4", d="192.168.1.2")

    def of(numbers: dict[PeerId, int]) -> tuple[PeerId, PeerId] | None:
        return contradicted(ME, numbers, lambda peer: connections.get(peer, NO_CONNECTION))

    assert of({A: 1, B: 1, ME: 1}) == (A, B)
    assert of({A: 1, B: 2, C: 1, ME: 1}) is None
    assert of({A: 0, B: 0, ME: 0}) is None
    assert of({A: 1, D: 1, ME: 1}) is None, "its router may be there"
    assert of({A: 1, PeerId("unknown"): 1, ME: 1}) is None


def test_nobody_judges_of_the_network_of_others_which_may_show_it_another_address() -> None:
    connections = seen(a="11.1.2.3", b="12.1.2.3")

    for numbers in ({A: 1, B: 1}, {A: 1, B: 1, ME: 0}, {A: 1, B: 1, ME: 2, C: 2}):
        assert contradicted(ME, numbers, lambda peer: connections.get(peer, NO_CONNECTION)) is None


def test_a_machine_with_two_kinds_of_addresses_contradicts_nobody() -> None:
    connections = {**seen(a="11.1.2.3", b="2600:db8:1::1"), C: behind(RELAY), **seen(relay="13.1.1.1")}

    assert contradicted(ME, {A: 1, B: 1, C: 1, ME: 1}, lambda peer: connections.get(peer, NO_CONNECTION)) is None
