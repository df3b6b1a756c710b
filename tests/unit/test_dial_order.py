"""Which addresses of a peer are tried, and in which order."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.dial_order import Nearness, dial_order, nearness

RELAY = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
CIRCUIT = f"/ip4/11.9.0.1/tcp/4710/p2p/{RELAY}/p2p-circuit"
HOSTS = ("192.168.1.7", "fd00::7")
NETWORKS = (ip_network("127.0.0.0/8"), ip_network("192.168.1.0/24"), ip_network("fd00::/64"))
IN_ORDER = (
    "/ip4/192.168.1.9/tcp/1",
    "/ip6/fd00::9/tcp/1",
    "/ip4/11.1.0.1/tcp/1",
    "/dns4/peer.example/tcp/1",
    CIRCUIT,
    "/ip4/10.0.0.9/tcp/1",
)


def test_near_addresses_go_first_and_private_ones_of_other_networks_last():
    order = dial_order(tuple(reversed(IN_ORDER)), HOSTS, NETWORKS)

    assert [where for _, where in order] == [
        Nearness.BESIDE, Nearness.BESIDE, Nearness.PUBLIC, Nearness.PUBLIC, Nearness.CIRCUIT, Nearness.BEHIND,
    ]  # fmt: skip
    assert {address for address, _ in order} == set(IN_ORDER)


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/tcp/22", "/ip4/224.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/255.255.255.255/tcp/1"]
)
def test_a_stranger_cannot_make_this_machine_dial_itself_or_everybody(address):
    assert dial_order((address, "/ip4/11.1.0.1/tcp/1"), HOSTS, NETWORKS) == (("/ip4/11.1.0.1/tcp/1", Nearness.PUBLIC),)


@pytest.mark.parametrize(
    "addresses", [("/ip4/127.0.0.1/tcp/1",), ("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.7/tcp/1"), ("/ip6/::1/tcp/1", CIRCUIT)]
)
def test_loopback_is_tried_of_a_peer_on_this_machine(addresses):
    assert dial_order(addresses, HOSTS, NETWORKS)[0] == (addresses[0], Nearness.HERE)


@given(st.lists(st.sampled_from(IN_ORDER)))
def test_law_the_order_keeps_what_was_known_first(addresses):
    order = dial_order(addresses, HOSTS, NETWORKS)

    for kind in Nearness:
        expected = [address for address in addresses if nearness(address, NETWORKS, False) is kind]
        assert [address for address, where in order if where is kind] == expected
