"""A machine whose network goes away and comes back with another address, and two on one LAN that meet without being told."""

import time

import pytest
from processes import UNHURRIED

from tests.netns import Commands, Internet, skip_reason

pytestmark = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
PEER = "legion_p2p.cli.peer"
NEW = ("--preset", "xxs", "--local-steps", "2", "--batch", "1")
AWAY_S = 12.0  # longer than the others wait before they take a peer for dead


def test_training_goes_on_after_an_outage_with_another_address(internet: Internet, commands: Commands) -> None:
    node, first, second = (internet.host(name) for name in ("node", "first", "second"))
    then = second.address.replace(".0.1", ".0.7")
    commands.start(node, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    common = ("--json", "--threads", "1", *UNHURRIED, "--initial-peers", address, "--identity", "key", "--store", "none")
    commands.start(first, "first", PEER, *common, "--new-run", "moving", *NEW)
    commands[1].line_with('"run.created"')
    commands.start(second, "second", PEER, *common, "--run", "moving")
    moving = commands[2]
    moving.line_with('"round.closed"', '"n_included":2', n=3)

    second.run("ip link set wan0 down")
    time.sleep(AWAY_S)
    gateway = second.address.replace(".0.1", ".0.254")
    second.run(f"ip addr flush dev wan0; ip addr add {then}/24 dev wan0; ip link set wan0 up; ip route add default via {gateway}")
    back_at, before = time.monotonic(), len(moving.lines_with('"round.closed"', '"n_included":2'))
    moving.line_with('"round.closed"', '"n_included":2', n=before + 1)

    print(f"rounds with both again after {time.monotonic() - back_at:.1f} s")
    assert f"{second.address} is gone" in moving.line_with('"network.away"')
    assert f"{then} is new" in moving.line_with('"network.changed"')
    assert not moving.lines_with('"error":true') and not moving.lines_with('"push.failed"')


def test_a_peer_without_initial_peers_finds_the_run_on_its_lan(internet: Internet, commands: Commands) -> None:
    home = internet.home("home")
    common = ("--json", "--threads", "1", *UNHURRIED, "--identity", "key", "--store", "none", "--lan", "yes")
    commands.start(home.host("a"), "a", PEER, *common, "--new-run", "near", *NEW)
    commands[0].line_with('"run.created"')
    commands.start(home.host("b"), "b", PEER, *common, "--run", "near")

    commands[1].line_with('"round.closed"', '"n_included":2')
