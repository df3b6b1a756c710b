"""What would help where no initial peer answers."""

from ipaddress import ip_network

import pytest

from legion_p2p.core.dial_advice import MAX_ADVICE, NO_KEY, OTHER_KEY, advice
from legion_p2p.core.identity import Identity

HOME = (ip_network("192.168.1.0/24"),)
RELAY = Identity(b"r" * 32).peer_id


@pytest.mark.parametrize(
    ("address", "reason", "helps"),
    [
        ("/ip4/8.8.8.8/tcp/4710", "connection refused", "nothing listens on port 4710 of 8.8.8.8: start the node"),
        ("/ip4/8.8.8.8/tcp/4710", "no answer in 5 s", "a firewall or router before it does not let port 4710 through"),
        ("/ip4/10.9.9.9/tcp/4710", "no answer in 5 s", "10.9.9.9 is an address within another network"),
        ("/ip4/192.168.1.9/tcp/4710", "no answer in 5 s", "192.168.1.9 may be off"),
        ("/dns4/nowhere.example/tcp/1", "the name cannot be resolved (x)", "check the spelling of nowhere.example"),
        ("/ip4/8.8.8.8/tcp/1", "the peer there has another id: y", "has another key than the address says"),
        ("/ip6/2a00:1450::1/tcp/1", "network is unreachable", "or give an IPv4 address"),
        (f"/ip4/8.8.8.8/tcp/1/p2p/{RELAY}/p2p-circuit", f"the relay {RELAY} cannot be reached: x", "present addresses"),
        (f"/ip4/8.8.8.8/tcp/1/p2p/{RELAY}/p2p-circuit", "no answer in 5 s", "the relay answers, and has no place"),
    ],
)
def test_each_failure_has_its_remedy(address: str, reason: str, helps: str) -> None:
    (told,) = advice({f"{address}/p2p/{RELAY}": reason}, HOME)

    assert helps in told


def test_the_same_advice_is_given_once_and_no_more_than_can_be_read() -> None:
    twice = {f"/ip4/8.8.8.8/tcp/4710/p2p/{n}": "connection refused" for n in range(3)}
    many = {f"/ip4/8.8.8.{n}/tcp/4710/p2p/x": "connection refused" for n in range(30)}

    assert len(advice(twice, HOME)) == 1
    assert len(advice(many, HOME)) == MAX_ADVICE


def test_what_is_not_known_to_help_is_not_advised() -> None:
    assert advice({"/ip4/8.8.8.8/tcp/4710/p2p/x": "not tried yet"}, HOME) == ()


@pytest.mark.parametrize(
    ("reason", "has_key", "told"),
    [
        ("connection closed by the other side", True, OTHER_KEY),
        ("connection closed by the other side", False, None),
        ("/legion/noise-xxpsk0/1 is not spoken there", True, OTHER_KEY),
        ("/noise is not spoken there", False, NO_KEY),
        ("/yamux/1.0.0 is not spoken there", False, None),
    ],
)
def test_where_only_one_side_has_the_network_key_that_is_said(reason: str, has_key: bool, told: str | None) -> None:
    found = advice({"/ip4/192.0.2.1/tcp/4710/p2p/peer": reason}, (), has_key=has_key)

    assert found == (() if told is None else (told,))
