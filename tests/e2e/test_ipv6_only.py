"""A machine that has IPv6 only: a network namespace with one IPv6 address, without IPv4 and without 127.0.0.1. Needs root."""

import os
import subprocess
import time
from collections.abc import Iterator

import pytest
from processes import UNHURRIED

from tests.netns import Commands, Namespace

HERE = "fd00::1"
IN_NAMESPACE = (
    "ip link set lo up && ip addr flush dev lo && ip -6 addr add ::1/128 dev lo && ip link add left type veth peer name right && "
    f"ip link set left up && ip link set right up && ip -6 addr add {HERE}/64 dev left nodad && exec sleep 600"
)


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """A namespace with IPv6 only."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", IN_NAMESPACE], stderr=subprocess.PIPE)
    machine = Namespace("six", holder, HERE)
    try:
        deadline = time.monotonic() + 30
        while HERE not in (shown := subprocess.run([*machine.inside, "ip", "addr"], capture_output=True, text=True)).stdout:
            if holder.poll() is not None:
                assert holder.stderr is not None
                pytest.skip(f"no network namespace here: {holder.stderr.read().decode().strip()}")
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert "127.0.0.1" not in shown.stdout
        yield machine
    finally:
        holder.kill()
        holder.communicate()


def test_a_bootstrap_node_and_peers_meet_and_train_without_ipv4(machine: Namespace, commands: Commands) -> None:
    node = commands.start(machine, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in node.line_with("--initial-peers", HERE).split() if HERE in word)
    peer = ("--json", "--threads", "1", *UNHURRIED, "--initial-peers", address, "--identity", "key")
    new = ("--new-run", "six", "--preset", "xxs", "--local-steps", "2", "--batch", "1")
    first = commands.start(machine, "first", "legion_p2p.cli.peer", *peer, *new)
    first.line_with('"run.created"')
    second = commands.start(machine, "second", "legion_p2p.cli.peer", *peer, "--run", "six")
    second.line_with('"run.joined"')

    second.line_with('"round.closed"', '"n_included":2')

    assert "legion-ctl cannot look at this peer" in first.line_with('"status.not_served"')
    told = first.line_with('"run.join_with"')
    assert f"--initial-peers /ip6/{HERE}/tcp/" in told and "127.0.0.1" not in told
