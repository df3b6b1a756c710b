"""The legion-bootstrap command, as a process: most are forks of one that has imported libp2p."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import trio

from legion_p2p.core.addresses import parse_addresses
from legion_p2p.core.identity import Identity
from legion_p2p.net.status_http import find_peers
from tests.waiting import PATIENCE_S, eventually

COMMAND = [sys.executable, "-m", "legion_p2p.cli.bootstrap"]


class Bootstrap:
    def __init__(self, tmp_path, popen, *args, env=None):
        identity = [] if "--identity" in args else ["--identity", str(tmp_path / "bootstrap.key")]
        self.process = popen(
            [*COMMAND, *identity, *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def addresses(self) -> tuple[str, ...]:
        line = self.process.stdout.readline()
        flag, *words = line.split()
        assert flag == "--initial-peers", (line, self.process.poll())
        return parse_addresses(words)

    def end(self, number) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path, forks):
    """Starts a node, as a fork where it is not said otherwise."""
    started = []

    def start(*args, popen=forks.popen, **kwargs):
        node = Bootstrap(tmp_path, popen, *args, **kwargs)
        started.append(node)
        return node

    yield start
    for node in started:
        node.process.kill()
        node.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_prints_one_line_and_leaves_on_a_signal(start, number, code):
    node = start("--port", "0", popen=subprocess.Popen)
    addresses = node.addresses()

    told_at = time.monotonic()
    returned, out, err = node.end(number)
    took_s = time.monotonic() - told_at

    assert returned == code
    assert took_s < 1.0  # 0.05 s is usual, on a busy machine as well
    assert out == ""
    assert "leaving" in err
    assert "Traceback" not in err
    assert addresses[-1].startswith("/ip4/127.0.0.1/tcp/")


def test_peers_join_through_the_printed_addresses(start):
    addresses = start("--listen", "/ip4/127.0.0.1/tcp/0").addresses()

    async def main():
        from legion_p2p.net.host import open_network

        async with (
            open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], initial_peers=addresses) as a,
            open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], initial_peers=addresses) as b,
        ):
            await a.join()
            await b.join()
            await a.discovery.provide("run")
            with trio.fail_after(PATIENCE_S):
                while [contact.peer_id for contact in await b.discovery.find("run")] != [a.peer_id]:  # noqa: ASYNC110
                    await trio.sleep(0.2)

    trio.run(main)


def test_it_is_the_same_node_after_a_restart(start):
    first = start("--port", "0")
    address = first.addresses()[-1]
    first.end(signal.SIGTERM)

    again = start("--listen", address.partition("/p2p/")[0])

    assert again.addresses() == (address,)


def test_after_a_restart_it_introduces_those_that_it_knew(start):
    first = start("--port", "0", "--metrics", "0")
    address = first.addresses()[-1]
    key = f"e2e/{time.time_ns()}"

    async def hears_of(peer_id):
        """From the node itself; the peer that provides the key would say so as well."""
        from libp2p.kad_dht.pb.kademlia_pb2 import Message
        from libp2p.peer.id import ID

        from legion_p2p.net.dht import multihash_of
        from legion_p2p.net.host import open_network

        question = Message(type=Message.MessageType.GET_PROVIDERS, key=multihash_of(key))
        node = ID.from_base58(address.rpartition("/")[2])
        async with open_network(Identity.generate(), listen=(), initial_peers=[address]) as newcomer:
            await newcomer.join()
            heard: list[str] = []
            with trio.fail_after(PATIENCE_S):
                while peer_id not in heard:
                    for answer in await newcomer.discovery.dht.ask(node, [question]):
                        heard += [str(ID(entry.id)) for entry in answer.providerPeers]
                    await trio.sleep(0.2)

    async def main():
        from legion_p2p.net.host import open_network

        async with open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], initial_peers=[address]) as peer:
            await peer.join()
            await peer.discovery.provide(key)
            await hears_of(peer.peer_id)
            told = (await trio.to_thread.run_sync(first.end, signal.SIGTERM))[2]
        again = start("--listen", address.partition("/p2p/")[0])
        again.addresses()
        await hears_of(peer.peer_id)  # which is gone: the node knows it from before
        return told, again

    told, again = trio.run(main)

    assert re.search(r"metrics: http://127\.0\.0\.1:[0-9]+/metrics", told)
    assert "known from last time: " in again.end(signal.SIGTERM)[2]


def test_options_come_from_the_environment_and_files(start, tmp_path):
    other = start("--port", "0").addresses()[-1]
    peers = tmp_path / "peers.txt"
    peers.write_text(f"# the other one\n\n{other}\n")

    node = start("--identity", str(tmp_path / "second.key"), env={"LEGION_PORT": "0", "LEGION_INITIAL_PEERS": f"@{peers}"})

    node.addresses()
    for line in node.process.stderr:
        if f"{other}: connected" in line:
            break
    else:
        pytest.fail("it never connected to the other")


def test_it_lives_on_while_its_initial_peers_are_down(start):
    dead = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"
    node = start("--port", "0", "--initial-peers", dead)
    node.addresses()

    for line in node.process.stderr:
        if f"{dead}: connection refused" in line:
            break
    time.sleep(0.5)
    assert node.process.poll() is None


def test_a_port_in_use_is_a_clear_error(start, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = start("--port", str(port))
        out, err = node.process.communicate(timeout=PATIENCE_S)

    assert node.process.returncode == 3
    assert out == ""
    assert re.search(rf"cannot listen on /ip4/0.0.0.0/tcp/{port}: address already in use", err)
    assert "Traceback" not in err


def test_an_identity_in_use_is_a_clear_error(start):
    start("--port", "0").addresses()
    second = start("--port", "0")

    _, err = second.process.communicate(timeout=PATIENCE_S)

    assert second.process.returncode != 0
    assert "in use by another process" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [["--initial-peers", "nonsense"], ["--port", "70000"], ["--listen", "x"], ["--what"]])
def test_usage_errors_are_one_line_and_exit_code_2(args, forks):
    done = forks.run([*COMMAND, *args], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("legion-bootstrap: error: ")
    assert "Traceback" not in done.stderr


def test_legion_ctl_shows_it_and_says_how_many_are_connected(start):
    node = start("--listen", "/ip4/127.0.0.1/tcp/0")
    (address,) = node.addresses()
    mine = eventually(
        lambda: [found.status for found in trio.run(find_peers) if found.status and found.status.peer_id in address]
    )

    assert mine[0].state == "bootstrap node" and mine[0].run is None and mine[0].n_connected == 0
    assert mine[0].service.relayed_bytes == 0 and mine[0].uptime_s > 0


def test_what_it_prints_is_what_another_command_takes_from_a_file(start, tmp_path):
    node = start("--listen", "/ip4/127.0.0.1/tcp/0")
    line = node.process.stdout.readline()
    (tmp_path / "my peers.txt").write_text(line)

    assert parse_addresses([f"@{tmp_path}/my peers.txt"]) == tuple(line.split()[1:])


def test_help_is_quick_to_import():
    code = (
        "import sys\nfrom legion_p2p.cli.bootstrap import main\n"
        "try:\n  main()\nfinally:\n  print(sorted({'torch', 'libp2p', 'trio'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 0
    assert "--initial-peers" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_a_running_node_has_not_imported_torch(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from legion_p2p.cli.bootstrap import app\n"
        "class Out:\n"
        "    def __getattr__(self, name): return getattr(sys.__stdout__, name)\n"
        "    def write(self, text):\n"
        "        if '--initial-peers' in text: os.kill(os.getpid(), signal.SIGTERM)\n"  # it listens
        "        return sys.__stdout__.write(text)\n"
        "sys.stdout = Out()\n"
        f"app(['--port', '0', '--identity', {str(tmp_path / 'key')!r}], result_action='return_value')\n"
        "print('torch' in sys.modules, 'libp2p' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.stdout.splitlines()[-1] == "False True", done.stderr
