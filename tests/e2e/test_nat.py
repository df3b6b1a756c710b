"""Peers behind home routers: real processes in network namespaces, with a public bootstrap node."""

import json

import pytest
from processes import UNHURRIED

from tests.netns import Commands, Internet, Namespace, skip_reason

pytestmark = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
PEER = "legion_p2p.cli.peer"


def test_two_peers_behind_nats_train_through_a_public_bootstrap_node(internet: Internet, commands: Commands) -> None:
    node = internet.host("node")
    homes = [internet.home("home-a").host("a"), internet.home("home-b").host("b")]
    commands.start(node, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    common = ("--json", "--threads", "1", *UNHURRIED, "--initial-peers", address, "--identity", "key")
    new = ("--new-run", "far", "--preset", "xxs", "--local-steps", "2", "--batch", "1")

    commands.start(homes[0], "a", PEER, *common, *new)
    commands[1].line_with('"run.created"')
    commands.start(homes[1], "b", PEER, *common, "--run", "far")
    commands[2].line_with('"run.joined"')

    for peer in commands[1:]:
        peer.line_with('"round.closed"', '"n_included":2', n=3)
        assert not peer.lines_with('"push.failed"')


def workers(internet: Internet, commands: Commands, a: Namespace, b: Namespace) -> None:
    """A bootstrap node, and two peers without a run, of which b sends requests to a without a pause."""
    node = internet.host("node")
    commands.start(node, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    commands.start(a, "a", "tests.reach_worker", "a", address)
    commands[1].line_with('"joined"')
    commands[1].line_with('"relays": 1')
    commands.start(b, "b", "tests.reach_worker", "b", address, "--talk-to", "a")


@pytest.mark.parametrize("internet", ["IPv4", "IPv6"], indirect=True)
def test_a_hole_is_punched_while_the_relay_carries_and_no_request_fails(internet: Internet, commands: Commands) -> None:
    a, b = internet.home("home-a").host("a"), internet.home("home-b").host("b")
    workers(internet, commands, a, b)

    commands[2].line_with('"kind": "relayed"')
    commands[2].line_with('"kind": "punched"')
    for peer in commands[1:]:  # with IPv6 each has a firewall and no NAT
        peer.line_with('"reach": "punchable"', f'"nat": "{"none" if internet.has_ipv6_only else "cone"}"')
        assert not peer.lines_with('"reach": "public"')

    assert not [line for line in commands[2].lines_with('"failed"') if '"after": 0' not in line]


def test_behind_a_nat_that_lets_in_whoever_was_dialed_a_peer_does_not_take_itself_for_public(
    internet: Internet, commands: Commands
) -> None:
    nodes = [internet.host("node"), internet.host("other")]
    addresses = []
    for node in nodes:
        commands.start(node, node.name, "legion_p2p.cli.bootstrap", "--identity", "key")
        line = commands[-1].line_with("--initial-peers", node.address)
        addresses.append(next(word for word in line.split() if node.address in word))
    home = internet.home("home", "restricted")
    commands.start(home.host("a"), "a", "tests.reach_worker", "a", *addresses)

    found = commands[2].line_with('"reach": "pu')
    assert '"punchable"' in found and "had dialed before got through" in found
    commands[2].line_with('"relays": 2')
    assert not commands[2].lines_with('"reach": "public"')


def test_behind_two_symmetric_nats_the_relay_goes_on_after_a_punch_that_failed(internet: Internet, commands: Commands) -> None:
    a, b = (internet.home(f"home-{name}", "symmetric").host(name) for name in "ab")
    workers(internet, commands, a, b)

    commands[2].line_with('"kind": "relayed"')
    commands[2].line_with('"reach": "relayed"')
    n_answers = json.loads(commands[2].line_with('"n_answers"', '"still": true'))["n_answers"]

    assert n_answers > 50 and not commands[2].lines_with('"kind": "punched"')
    assert not [line for line in commands[2].lines_with('"failed"') if '"after": 0' not in line]


def test_two_peers_in_one_home_talk_without_the_relay(internet: Internet, commands: Commands) -> None:
    home = internet.home("home")
    workers(internet, commands, home.host("a"), home.host("b"))

    assert '"direct"' in commands[2].line_with('"kind"')


def test_where_large_packets_vanish_a_transfer_goes_on_with_small_ones(internet: Internet, commands: Commands) -> None:
    node, a, b = internet.host("node"), internet.host("a"), internet.home("home").host("b")
    internet.swallow_above(1280)
    commands.start(node, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    commands.start(a, "a", "tests.reach_worker", "a", address, "--talk-to", "b")
    commands[1].line_with('"joined"')

    commands.start(b, "b", "tests.reach_worker", "b", address, "--send", "a", "2")

    commands[2].line_with('"sent": 2')
    assert any(command.lines_with("large packets seem to vanish") for command in commands)  # whoever sends them first notices
