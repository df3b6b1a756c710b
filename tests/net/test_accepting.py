"""Few file descriptors, and machines with one family of addresses or the other."""

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.errors import NetworkError, NoContactError
from legion_p2p.net import networks, parts
from legion_p2p.net.accepting import MIN_SOCKETS, RESERVED_DESCRIPTORS, Scarcity, accept_forever, max_sockets
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import MAX_CONNECTIONS, MAX_HANDSHAKES
from legion_p2p.net.tally import Tally
from tests.waiting import PATIENCE_S

has_ipv6 = Path("/proc/net/if_inet6").exists() and bool(Path("/proc/net/if_inet6").read_text())


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, MAX_CONNECTIONS + MAX_HANDSHAKES), (1 << 20, MAX_CONNECTIONS + MAX_HANDSHAKES), (256, 256 - RESERVED_DESCRIPTORS),
     (RESERVED_DESCRIPTORS, MIN_SOCKETS), (3, MIN_SOCKETS)],
)  # fmt: skip
def test_descriptors_for_the_peer_itself_are_kept_back(limit, expected):
    assert max_sockets(limit) == expected


def test_it_is_told_once_that_connections_are_turned_away_and_again_when_it_comes_back():
    told: list[str] = []
    scarcity = Scarcity(100, told.append, Tally())
    most = scarcity.max_sockets

    assert scarcity.admits(most - 1) and not scarcity.admits(most) and not scarcity.admits(most + 5)
    assert len(told) == 1 and "may open 100 files" in told[0] and "ulimit -n" in told[0]
    assert scarcity.admits(0) and not scarcity.admits(most)
    assert len(told) == 2


def test_a_crowd_beyond_the_usual_bound_is_turned_away_without_a_word():
    told: list[str] = []
    scarcity = Scarcity(None, told.append, Tally())

    assert not scarcity.admits(scarcity.max_sockets) and told == []


class Listening:
    """Fails as the operating system does, then gives a connection."""

    def __init__(self, *numbers):
        self._failures = [OSError(number, os.strerror(number)) for number in numbers]
        self.given = 0
        self.is_closed = False

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.is_closed = True

    async def accept(self):
        await trio.lowlevel.checkpoint()
        if self._failures:
            raise self._failures.pop(0)
        self.given += 1
        if self.given > 2:
            raise trio.ClosedResourceError
        return self.given


async def test_a_lack_of_descriptors_is_waited_out_and_told_once(autojump_clock):
    told: list[str] = []
    seen: list[int] = []
    listening = Listening(errno.EMFILE, errno.EMFILE, errno.ENFILE, errno.ECONNABORTED)

    async def handle(stream):
        seen.append(stream)

    began = trio.current_time()
    await accept_forever(listening, handle, Scarcity(64, told.append, Tally()))

    assert seen == [1, 2] and len(told) == 1
    assert trio.current_time() - began == pytest.approx(3.0)
    assert listening.is_closed


async def test_a_port_is_free_as_soon_as_nobody_accepts_there_any_more():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.move_on_after(0.05):
        await accept_forever(listener, trio.aclose_forcefully, Scarcity(64, print, Tally()))

    assert listener.socket.fileno() == -1


@pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")
async def test_by_default_both_families_are_listened_on_and_announced_loopback_last():
    async with open_network(Identity.generate()) as network:
        addresses = network.addresses()

    assert {address.split("/")[1] for address in addresses} == {"ip4", "ip6"}
    assert addresses[-1].startswith("/ip4/127.0.0.1/") and addresses[-2].startswith("/ip6/::1/")


@pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")
async def test_peers_find_each_other_over_ipv6_alone():
    async with (
        open_network(Identity.generate(), listen=["/ip6/::1/tcp/0"]) as a,
        open_network(Identity.generate(), listen=["/ip6/::1/tcp/0"], initial_peers=a.addresses()) as b,
    ):
        with trio.fail_after(PATIENCE_S):
            await b.join()
        assert a.peer_id in b.messenger.connected()


@pytest.mark.parametrize("lacking", ["ip4", "ip6"])
async def test_a_family_that_the_machine_lacks_is_left_out(lacking, monkeypatch):
    bind = parts.Listener.listen

    async def without(self, maddr):
        if str(maddr).startswith(f"/{lacking}/"):
            raise parts.OpenConnectionError("no such family") from OSError(errno.EAFNOSUPPORT, "no such family")
        await bind(self, maddr)

    monkeypatch.setattr(parts.Listener, "listen", without)
    other = {"ip4": "/ip6/::1/tcp/0", "ip6": "/ip4/127.0.0.1/tcp/0"}[lacking]
    if lacking == "ip4" and not has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with open_network(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"]) as network:
        assert [address.split("/")[1] for address in network.addresses()] == [other.split("/")[1]]
    with pytest.raises(NetworkError, match="cannot listen"):
        async with open_network(Identity.generate(), listen=[f"/{lacking}/{'127.0.0.1' if lacking == 'ip4' else '::1'}/tcp/0"]):
            pass


async def test_the_own_id_in_an_initial_address_is_told_with_what_it_may_mean():
    identity = Identity.generate()
    own = f"/ip4/127.0.0.1/tcp/1/p2p/{identity.peer_id}"

    async with open_network(identity, listen=(), initial_peers=[own]) as network:
        with pytest.raises(NoContactError, match="another one with a copy of its key"):
            await network.join()


def test_a_bootstrap_node_with_few_descriptors_says_so_once_and_goes_on(tmp_path):
    few = 100
    node = subprocess.Popen(
        [sys.executable, "-m", "legion_p2p.cli.bootstrap", "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(tmp_path / "k")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (few, few)),
    )  # fmt: skip
    opened: list[socket.socket] = []
    try:
        port = int(re.search(r"/tcp/(\d+)/", node.stdout.readline())[1])
        for _ in range(2 * few):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        time.sleep(3)
        assert node.poll() is None
        node.send_signal(signal.SIGTERM)
        _, err = node.communicate(timeout=PATIENCE_S)
    finally:
        node.kill()
        for each in opened:
            each.close()

    assert node.returncode == 143 and "Traceback" not in err
    assert err.count("ulimit -n") == 1 and len(err.splitlines()) < 15, err


@pytest.mark.parametrize(
    ("interfaces", "hosts"),
    [
        (["127.0.0.1", "::1"], ("127.0.0.1", "::1")),
        (["::1", "fd00::5"], ("::1",)),
        (["127.0.0.53", "10.0.0.5"], ("127.0.0.1",)),
        ([], ()),
    ],
)  # fmt: skip
def test_a_loopback_that_this_machine_lacks_is_not_announced(monkeypatch, interfaces, hosts):
    entries = [SimpleNamespace(address=address, netmask=None) for address in [*interfaces, "aa:bb:cc:dd:ee:ff"]]
    monkeypatch.setattr(networks.psutil, "net_if_addrs", lambda: {"eth0": entries})

    assert networks.own_loopbacks() == hosts
