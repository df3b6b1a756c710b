"""legion-bootstrap: what it says, how often, and to whom its addresses are of use."""

import pytest

from legion_p2p.cli.bootstrap import DAY_S, LOOK_EVERY_S, Counts, reach_lines
from legion_p2p.core.addresses import AddressScope, scope_of
from legion_p2p.core.identity import Identity

PEER = Identity(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("/ip4/8.8.8.8/tcp/1", AddressScope.ANYWHERE), ("/ip6/2a00:1450::1/tcp/1", AddressScope.ANYWHERE),
        ("/dns4/a.example/tcp/1", AddressScope.ANYWHERE),
        ("/ip4/192.168.1.2/tcp/1", AddressScope.NETWORK), ("/ip4/10.0.0.1/tcp/1", AddressScope.NETWORK),
        ("/ip4/100.64.0.1/tcp/1", AddressScope.NETWORK),
        ("/ip6/fd00::1/tcp/1", AddressScope.NETWORK), ("/ip4/127.0.0.1/tcp/1", AddressScope.MACHINE),
        ("/ip6/::1/tcp/1", AddressScope.MACHINE), ("/dns/localhost/tcp/1", AddressScope.MACHINE),
    ],
)  # fmt: skip
def test_it_is_known_from_where_an_address_can_be_dialed(address, reach):
    assert scope_of(f"{address}/p2p/{PEER}") is reach


def test_it_says_which_addresses_are_of_use_to_whom():
    lines = reach_lines([f"/ip4/192.168.1.2/tcp/4710/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/4710/p2p/{PEER}"], 4710)

    assert lines[0] == "others in this network can dial /ip4/192.168.1.2/tcp/4710"
    assert lines[1] == "others on this machine can dial /ip4/127.0.0.1/tcp/4710"
    assert "forward TCP port 4710" in lines[2] and "--announce /ip4/PUBLIC_ADDRESS/tcp/4710" in lines[2]
    assert reach_lines([f"/ip4/8.8.8.8/tcp/4710/p2p/{PEER}"], 4710) == ["others anywhere can dial /ip4/8.8.8.8/tcp/4710"]


def test_a_day_of_coming_and_going_is_fewer_than_40_lines_and_the_first_peer_is_told_at_once():
    counts = Counts()
    lines = [counts.look(int(second) // 10 % 7, second) for second in range(0, int(DAY_S), int(LOOK_EVERY_S))]

    assert lines[0] == "0 peers connected"
    assert "1 peer connected" in lines[:10]
    assert 24 <= sum(line is not None for line in lines) < 40


def test_a_node_that_nobody_visits_still_says_once_a_day_that_it_lives():
    counts = Counts()

    assert [counts.look(0, at) is not None for at in (0.0, 3600.0, DAY_S, DAY_S + 60, 2 * DAY_S)] == [
        True,
        False,
        True,
        False,
        True,
    ]
