"""A machine whose network goes away and comes back with another address, and two on one LAN that meet without being told."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import Command, Internet, close_all, opened, skip_reason

pytestmark = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
PEER = "legion_p2p.cli.peer"
NEW = ("--preset", "xxs", "--local-steps", "2", "--batch", "1")
AWAY_S = 12.0  # longer than the others wait before they take a peer for dead
AGAIN_S = 10.0  # until the next round with both, after the network is back
SLACK_S = 20.0  # for a machine that runs other tests beside


@pytest.fixture
def internet() -> Iterator[Internet]:
    with opened() as made:
        yield made


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    close_all(started)


def test_training_goes_on_after_an_outage_with_another_address(
    internet: Internet, commands: list[Command], tmp_path: Path
) -> None:
    node, first, second = (internet.host(name) for name in ("node", "first", "second"))
    then = second.address.replace(".0.1", ".0.7")
    commands.append(Command(node, tmp_path, "node", "legion_p2p.cli.bootstrap", "--identity", "key"))
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    common = ("--json", "--threads", "1", "--initial-peers", address, "--identity", "key", "--store", "none")
    commands.append(Command(first, tmp_path, "first", PEER, *common, "--new-run", "moving", *NEW))
    commands[1].line_with('"run.created"')
    commands.append(Command(second, tmp_path, "second", PEER, *common, "--run", "moving"))
    moving = commands[2]
    moving.line_with('"round.closed"', '"n_included":2', n=3)

    second.run("ip link set wan0 down")
    time.sleep(AWAY_S)
    gateway = second.address.replace(".0.1", ".0.254")
    second.run(f"ip addr flush dev wan0; ip addr add {then}/24 dev wan0; ip link set wan0 up; ip route add default via {gateway}")
    back_at, before = time.monotonic(), len(moving.lines_with('"round.closed"', '"n_included":2'))
    while len(moving.lines_with('"round.closed"', '"n_included":2')) == before:
        assert time.monotonic() < back_at + AGAIN_S + SLACK_S, moving.text()[-4000:]
        time.sleep(0.1)

    print(f"rounds with both again after {time.monotonic() - back_at:.1f} s")
    assert f"{second.address} is gone" in moving.line_with('"network.away"')
    assert f"{then} is new" in moving.line_with('"network.changed"')
    assert not moving.lines_with('"error":true') and not moving.lines_with('"push.failed"')


def test_a_peer_without_initial_peers_finds_the_run_on_its_lan(
    internet: Internet, commands: list[Command], tmp_path: Path
) -> None:
    home = internet.home("home")
    common = ("--json", "--threads", "1", "--identity", "key", "--store", "none", "--lan", "yes")
    commands.append(Command(home.host("a"), tmp_path, "a", PEER, *common, "--new-run", "near", *NEW))
    commands[0].line_with('"run.created"')
    commands.append(Command(home.host("b"), tmp_path, "b", PEER, *common, "--run", "near"))

    commands[1].line_with('"round.closed"', '"n_included":2')
