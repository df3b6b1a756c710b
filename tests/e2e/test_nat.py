"""Peers behind home routers: real processes in network namespaces, with a public bootstrap node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import Command, Internet, close_all, opened, skip_reason

pytestmark = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")
PEER = "legion_p2p.cli.peer"


@pytest.fixture
def internet() -> Iterator[Internet]:
    with opened() as made:
        yield made


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    close_all(started)


def test_two_peers_behind_nats_train_through_a_public_bootstrap_node(
    internet: Internet, commands: list[Command], tmp_path: Path
) -> None:
    node = internet.host("node")
    homes = [internet.home("home-a").host("a"), internet.home("home-b").host("b")]
    commands.append(Command(node, tmp_path, "node", "legion_p2p.cli.bootstrap", "--identity", "key"))
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    common = ("--json", "--threads", "1", "--initial-peers", address, "--identity", "key")
    new = ("--new-run", "far", "--preset", "xxs", "--local-steps", "2", "--batch", "1")

    commands.append(Command(homes[0], tmp_path, "a", PEER, *common, *new))
    commands[1].line_with('"run.created"')
    commands.append(Command(homes[1], tmp_path, "b", PEER, *common, "--run", "far"))
    commands[2].line_with('"run.joined"')

    for peer in commands[1:]:
        peer.line_with('"round.closed"', '"n_included":2', n=3)
        assert not peer.lines_with('"push.failed"')
