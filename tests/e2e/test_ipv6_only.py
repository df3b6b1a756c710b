"""A machine that has IPv6 only: a network namespace with one IPv6 address, without IPv4 and without 127.0.0.1. Needs root."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

HERE = "fd00::1"
IN_NAMESPACE = (
    "ip link set lo up && ip addr flush dev lo && ip -6 addr add ::1/128 dev lo && ip link add left type veth peer name right && "
    f"ip link set left up && ip link set right up && ip -6 addr add {HERE}/64 dev left nodad && exec sleep 600"
)


@pytest.fixture
def namespace() -> Iterator[list[str]]:
    """The words before a command that run it in a namespace with IPv6 only."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", IN_NAMESPACE], stderr=subprocess.PIPE, text=True)
    try:
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        deadline = time.monotonic() + 30
        while HERE not in (shown := subprocess.run([*inside, "ip", "addr"], capture_output=True, text=True)).stdout:
            if holder.poll() is not None:
                assert holder.stderr is not None
                pytest.skip(f"no network namespace here: {holder.stderr.read().strip()}")
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert "127.0.0.1" not in shown.stdout
        yield inside
    finally:
        holder.kill()
        holder.wait()


class Command:
    """A command in the namespace; what it says goes to a file."""

    def __init__(self, inside: list[str], folder: Path, name: str, *words: str) -> None:
        self.said = folder / f"{name}.out"
        self._file: IO[str] = self.said.open("w")
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", *words], stdout=self._file, stderr=subprocess.STDOUT, cwd=folder,
            env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def text(self) -> str:
        return self.said.read_text()

    def line_with(self, *words: str, within_s: float = 120) -> str:
        deadline = time.monotonic() + within_s
        while True:
            for line in self.text().splitlines():
                if all(word in line for word in words):
                    return line
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


def test_a_bootstrap_node_and_peers_meet_and_train_without_ipv4(namespace: list[str], tmp_path: Path) -> None:
    commands = [Command(namespace, tmp_path, "node", "legion_p2p.cli.bootstrap", "--identity", "node.key")]
    try:
        address = next(word for word in commands[0].line_with("--initial-peers", HERE).split() if HERE in word)
        peer = ("legion_p2p.cli.peer", "--json", "--threads", "1", "--initial-peers", address)
        new = ("--new-run", "six", "--preset", "xxs", "--local-steps", "2", "--batch", "1", "--identity", "first.key")
        commands.append(Command(namespace, tmp_path, "first", *peer, *new))
        commands[1].line_with('"run.created"')
        commands.append(Command(namespace, tmp_path, "second", *peer, "--run", "six", "--identity", "second.key"))
        commands[2].line_with('"run.joined"')

        commands[2].line_with('"round.closed"', '"n_included":2')
        assert "legion-ctl cannot look at this peer" in commands[1].line_with('"status.not_served"')
        told = commands[1].line_with('"run.join_with"')
        assert f"--initial-peers /ip6/{HERE}/tcp/" in told and "127.0.0.1" not in told
    finally:
        for command in commands:
            command.close()
