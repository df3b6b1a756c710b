"""Meeting the peers of a LAN, with mDNS in its place; and mDNS itself between two sessions on this machine."""

from contextlib import asynccontextmanager

import pytest
import trio

from legion_p2p.core.connectivity import AddressesChanged
from legion_p2p.core.identity import Identity
from legion_p2p.core.neighbours import MAX_CONNECTED, MAX_NEIGHBOURS, announcement
from legion_p2p.core.observers import Observers
from legion_p2p.errors import UnreachableError
from legion_p2p.net import lan as lan_module
from legion_p2p.net.lan import Lan
from legion_p2p.net.mdns import open_mdns
from legion_p2p.net.networks import own_hosts
from tests.waiting import PATIENCE_S

ME = Identity(bytes(32)).peer_id
HERE = "192.168.1.5"


class World:
    """A LAN as one peer sees it: what is announced there, and who answers when dialed."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr(lan_module, "own_networks", tuple)
        monkeypatch.setattr(lan_module, "is_elsewhere", lambda host, networks: not host.startswith("192.168.1."))
        self.me = ME
        self.hosts = (HERE,)
        self.said: dict[str, bytes] = {}
        self.there: set[str] = set()
        self.open: set[str] = set()
        self.dialed: list[str] = []
        self.heard_of: dict[str, tuple[str, ...]] = {}
        self.sessions: list[tuple] = []
        self.fails = 0
        self.changed: Observers = Observers()
        self.send: trio.MemorySendChannel
        self.lan = Lan(self, self, self, self, self.open_session)

    def announce(self, name: str, address: str = "/ip4/192.168.1.6/tcp/4710", peer: str = "") -> None:
        self.said[name] = announcement(peer or name, [address])
        self.send.send_nowait((name, True))

    # mDNS

    @asynccontextmanager
    async def open_session(self, hosts, name, port, said):
        self.sessions.append((tuple(hosts), name, port, said))
        if self.fails:
            self.fails -= 1
            raise OSError("port 5353 is taken")
        self.send, self.heard = trio.open_memory_channel(10_000)
        yield self

    async def said_by(self, name: str) -> bytes:
        await trio.sleep(0.001)
        return self.said[name]

    # the addresses to listen on

    def look(self):
        return self.hosts

    def near(self):
        return tuple((host, 4710) for host in self.hosts)

    # the dialer, and the address book

    def connections(self, peer: str):
        return [peer] if peer in self.open else []

    async def connect(self, peer: str) -> None:
        self.dialed.append(peer)
        await trio.sleep(0.1)
        if peer not in self.there:
            raise UnreachableError(peer, "connection refused")
        self.open.add(peer)

    def hear(self, peer: str, addresses: tuple[str, ...]) -> None:
        self.heard_of[peer] = addresses


@pytest.fixture
async def world(monkeypatch, nursery):
    made = World(monkeypatch)
    nursery.start_soon(made.lan.run_forever)
    await trio.sleep(0.1)
    return made


def ids(n: int) -> list[str]:
    return [Identity(i.to_bytes(32, "big")).peer_id for i in range(1, n + 1)]


async def test_a_neighbour_becomes_a_contact_in_a_second(world, autojump_clock):
    (other,) = ids(1)
    world.there = {other}
    world.announce(other)
    with trio.fail_after(PATIENCE_S):
        await world.lan.met.wait()

    assert world.open == {other}
    assert world.heard_of == {other: ("/ip4/192.168.1.6/tcp/4710",)}
    assert world.sessions == [((HERE,), ME, 4710, announcement(ME, [f"/ip4/{HERE}/tcp/4710"]))]


async def test_names_that_are_no_peers_this_peer_itself_and_places_elsewhere_lead_to_nobody(world, autojump_clock):
    first, second = ids(2)
    world.announce("\x1b]0;printer\x07")
    world.announce(ME)
    world.announce(first, "/ip4/203.0.113.7/tcp/4710")
    world.announce(second, peer=first)
    await trio.sleep(60)

    assert world.dialed == [] and world.heard_of == {} and not world.lan.met.is_set()


async def test_thousands_of_invented_neighbours_cost_a_bounded_number_of_dials(world, autojump_clock):
    crowd = ids(2000)
    for peer in crowd:
        world.announce(peer)
    await trio.sleep(60)

    assert len(world.heard_of) == len(crowd)  # which the address book bounds
    assert len(set(world.dialed)) <= 2 * MAX_NEIGHBOURS
    assert len(world.dialed) <= 60 * 4

    honest = Identity.generate().peer_id
    world.there = {honest}
    world.announce(honest)
    await trio.sleep(5)
    assert world.open == {honest}


async def test_no_more_than_a_few_neighbours_are_kept(world, autojump_clock):
    crowd = ids(30)
    world.there = set(crowd)
    for peer in crowd:
        world.announce(peer)
    await trio.sleep(60)

    assert len(world.open) == MAX_CONNECTED


async def test_another_address_begins_another_session(world, autojump_clock):
    world.hosts = ("192.168.1.9",)
    world.changed.tell(AddressesChanged((HERE,), world.hosts))
    await trio.sleep(1)

    assert [hosts for hosts, *_ in world.sessions] == [(HERE,), ("192.168.1.9",)]


async def test_a_machine_that_lets_no_mdns_through_is_tried_again_later_in_silence(monkeypatch, nursery, autojump_clock, capfd):
    world = World(monkeypatch)
    world.fails = 2
    nursery.start_soon(world.lan.run_forever)
    await trio.sleep(lan_module.RETRY_S * 2.5)

    assert len(world.sessions) == 3
    assert capfd.readouterr() == ("", "")


async def test_a_peer_that_listens_on_its_own_machine_alone_announces_nothing(monkeypatch, nursery, autojump_clock):
    world = World(monkeypatch)
    monkeypatch.setattr(world, "near", tuple)
    nursery.start_soon(world.lan.run_forever)
    await trio.sleep(600)

    assert world.sessions == []


async def test_two_sessions_on_one_machine_hear_each_other_and_the_goodbye():
    hosts = [host for host in own_hosts() if ":" not in host]
    if not hosts:
        pytest.skip("needs an interface besides loopback")
    first, second = ids(2)
    said = announcement(second, [f"/ip4/{hosts[0]}/tcp/4710"])

    async def hear(session, wanted: tuple[str, bool]) -> None:
        async for heard in session.heard:
            if heard == wanted:
                return

    try:
        with trio.fail_after(PATIENCE_S):
            async with open_mdns(hosts, first, 4710, announcement(first, [f"/ip4/{hosts[0]}/tcp/4711"])) as a:
                async with open_mdns(hosts, second, 4710, said):
                    await hear(a, (second, True))
                    assert await a.said_by(second) == said
                await hear(a, (second, False))
    except OSError as refused:
        pytest.skip(f"no mDNS on this machine: {refused}")
