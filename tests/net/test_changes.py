"""Connections that carry nothing any more, and what a peer does when its network changes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
from libp2p.network.swarm import Swarm

from legion_p2p.core.connectivity import Sight
from legion_p2p.core.identity import Identity
from legion_p2p.errors import UnreachableError
from legion_p2p.net.changes import MAX_TRIED, NetworkChanges
from legion_p2p.net.circuit_stream import CircuitStream
from legion_p2p.net.liveness import CHECK_S, ConnectionLiveness, close
from legion_p2p.observe.events import Event, Events
from tests.net.conftest import eventually, opened
from tests.waiting import PATIENCE_S

HOME, AWAY = frozenset({"192.168.1.5"}), frozenset({"10.0.0.7"})


# connections


class Path:
    """Carries one connection's bytes between two peers, until it is cut: then they vanish, as behind a router that is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.is_cut = False

    async def carry(self, stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as other, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, stream, other)
            nursery.start_soon(self._copy, other, stream)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                if not self.is_cut:
                    await sink.send_all(data)
            await sink.send_eof()


@asynccontextmanager
async def connected_by_a_path() -> AsyncIterator[tuple]:
    """Two peers, and the path that the only connection between them takes."""
    async with opened() as a, trio.open_nursery() as nursery:
        path = Path(int(a.addresses()[0].split("/")[4]))
        listeners = await nursery.start(partial(trio.serve_tcp, path.carry, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with opened(initial_peers=[f"/ip4/127.0.0.1/tcp/{port}/p2p/{a.peer_id}"]) as b:
            await eventually(lambda: b.peer_id in a.messenger.connected())
            yield a, b, path
        nursery.cancel_scope.cancel()


def connections(of, to) -> list:
    return list(of._contacts._dialer.connections(to.peer_id))


async def test_a_connection_that_answers_stays_and_one_that_does_not_is_closed_in_seconds():
    async with connected_by_a_path() as (a, b, path):
        (conn,) = connections(a, b)
        async with trio.open_nursery() as nursery:
            liveness = ConnectionLiveness(a._host.get_network(), nursery)

            assert await liveness.check_all() == frozenset()
            assert not conn.is_closed

            path.is_cut = True
            with trio.fail_after(CHECK_S + PATIENCE_S):
                assert await liveness.check_all() == {b.peer_id}
            assert not connections(a, b)


async def test_a_peer_that_connects_again_takes_the_place_of_the_connection_that_it_left_behind():
    async with connected_by_a_path() as (a, b, path):
        (left_behind,) = connections(a, b)
        path.is_cut = True
        b._contacts._changes._dialer._book.add(a.peer_id, (a.addresses()[0].partition("/p2p/")[0],))
        (conn,) = connections(b, a)

        await close(conn)  # as one whose address is gone does

        await eventually(lambda: left_behind.is_closed and len(connections(a, b)) == 1, within_s=CHECK_S + PATIENCE_S)
        assert await a.messenger.request(b.peer_id, b"on the new one") == b"on the new one"


async def test_a_second_connection_that_both_opened_at_the_same_time_does_no_harm():
    async with opened() as a, opened(of=a) as b:
        where = b.addresses()[0].partition("/p2p/")[0]
        await a._contacts._dialer.try_address(b.peer_id, where)

        await trio.sleep(CHECK_S + 0.5)

        assert connections(a, b) and connections(b, a)
        assert await a.messenger.request(b.peer_id, b"x") == b"x"


class Carried:
    """A connection through a relay whose other end sends a shard, so that its pong comes late, or sends nothing at all."""

    def __init__(self, sends: bool) -> None:
        self.is_closed = False
        self.muxed_conn = self.secured_conn = self.conn = self
        self.stream = CircuitStream(self)  # type: ignore[arg-type]
        self.peer_id = Identity(b"p" * 32).peer_id
        self._ping_id = 0
        self._ping_event: trio.Event | None = None
        self._sends = sends
        self.event_closed = trio.Event()

    async def _write_frame(self, frame: bytes) -> None: ...

    async def read(self, n: int) -> bytes:
        await trio.sleep(1.0 if self._sends else float("inf"))
        return bytes(1000)

    async def close(self) -> None:
        self.is_closed = True
        self.event_closed.set()

    async def read_forever(self) -> None:
        while True:
            await self.stream.read()


@pytest.mark.parametrize("sends", [True, False])
async def test_a_circuit_on_which_something_comes_in_is_alive_although_its_pong_is_late(sends, autojump_clock):
    conn: Any = Carried(sends)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.read_forever)

        assert await ConnectionLiveness(cast(Swarm, None), nursery).check(conn) is sends
        assert conn.is_closed is not sends
        nursery.cancel_scope.cancel()


# changes, in virtual time


class World:
    """A peer's surroundings and its connections."""

    def __init__(self, n_peers: int) -> None:
        self.hosts, self.received_bytes, self.slept_s = HOME, 0, 0.0
        self.everyone = [Identity(bytes([i]) * 32).peer_id for i in range(1, n_peers + 1)]
        self.open = dict.fromkeys(self.everyone, "192.168.1.5")
        self.dead: set[str] = set()
        self.reachable = True
        self.dialed: list[tuple[float, str]] = []
        self.started_over = trio.Event()
        self.told: list[tuple[float, str, str]] = []
        events = Events()
        events.add_sink(self._hear)
        self.changes = NetworkChanges(self, self, self.look, events)

    def _hear(self, event: Event) -> None:
        self.told.append((trio.current_time(), event.name, event.fields["text"]))

    def look(self) -> Sight:
        now = trio.current_time()
        if self.reachable:
            self.received_bytes += len(self.open)
        return Sight(
            now=now, running_on=now + self.slept_s, hosts=self.hosts, received_bytes=self.received_bytes,
            n_connections=len(self.open),
        )  # fmt: skip

    # as the dialer

    def connections(self, peer: str) -> list[str]:
        return [self.open[peer]] if peer in self.open else []

    async def connect(self, peer: str) -> None:
        self.dialed.append((trio.current_time(), peer))
        while not self.reachable:
            began_again = self.started_over
            with trio.move_on_after(5.0):
                await began_again.wait()
            if not began_again.is_set():
                raise UnreachableError(peer, "no answer in 5 s")
        await trio.sleep(0.1)
        self.open[peer] = next(iter(self.hosts))

    def start_over(self) -> None:
        self.started_over.set()
        self.started_over = trio.Event()

    # as the liveness of connections

    def n_connections(self) -> int:
        return len(self.open)

    async def ask(self, most: int) -> None:
        await trio.lowlevel.checkpoint()

    async def check_all(self) -> frozenset:
        await trio.sleep(CHECK_S)
        return self._close({peer for peer in self.open if peer in self.dead})

    async def drop(self, is_dead) -> frozenset:
        await trio.lowlevel.checkpoint()
        return self._close({peer for peer, host in self.open.items() if is_dead(host)})

    def _close(self, peers: set) -> frozenset:
        for peer in peers:
            del self.open[peer]
        return frozenset(peers)


@pytest.fixture
async def world(nursery):
    made = World(40)
    nursery.start_soon(made.changes.watch_forever)
    await trio.sleep(10)
    assert made.told == []
    return made


async def test_with_another_address_everybody_is_dialed_again_at_once(world, autojump_clock):
    world.hosts = AWAY
    changed_at = trio.current_time()
    await trio.sleep(3)

    assert set(world.open) == set(world.everyone)
    assert set(world.open.values()) == {"10.0.0.7"}
    assert max(at for at, _ in world.dialed) - changed_at < 1.5
    assert [(name, text) for _, name, text in world.told] == [("network.changed", "192.168.1.5 is gone, 10.0.0.7 is new")]


async def test_after_a_minute_without_network_all_are_back_within_ten_seconds(world, autojump_clock):
    away_at = trio.current_time()
    world.reachable = False
    await trio.sleep(60)
    assert not world.open
    assert world.changes.is_cut_off
    assert 0 < sum(at > trio.current_time() - 8 for at, _ in world.dialed) <= 2 * MAX_TRIED

    world.reachable = True
    await trio.sleep(10)

    assert set(world.open) == set(world.everyone)
    assert not world.changes.is_cut_off
    assert [name for _, name, _ in world.told] == ["network.away", "network.back"]
    assert world.told[0][0] - away_at == pytest.approx(10, abs=1)
    assert world.told[0][2] == "nothing arrived for 10 s; trying again"


async def test_a_machine_that_slept_closes_only_what_is_dead(world, autojump_clock):
    world.dead = set(world.everyone[:3])
    world.slept_s = 185.0
    await trio.sleep(1 + CHECK_S + 1)

    assert set(world.open) == set(world.everyone)
    assert {peer for _, peer in world.dialed} == world.dead
    assert [(name, text) for _, name, text in world.told] == [("network.resumed", "this machine slept for 3 min")]


async def test_a_machine_without_any_address_says_so_once_and_waits(world, autojump_clock):
    world.hosts = frozenset()
    world.reachable = False
    await trio.sleep(300)

    assert [(name, text) for _, name, text in world.told] == [
        ("network.away", "192.168.1.5 is gone, and this machine has no other address")
    ]

    world.hosts, world.reachable = HOME, True
    await trio.sleep(5)

    assert set(world.open) == set(world.everyone)
    assert [text for _, name, text in world.told if name == "network.changed"] == ["192.168.1.5 is new"]


async def test_peers_that_stay_away_are_left_to_the_services_after_a_minute(world, autojump_clock):
    world.hosts = AWAY
    world.connect = None
    calls = []

    async def fail(peer: str) -> None:
        calls.append(trio.current_time())
        await trio.sleep(0.1)
        raise UnreachableError(peer, "connection refused")

    world.connect = fail
    await trio.sleep(300)

    assert calls and max(calls) < trio.current_time() - 200


async def test_a_lonely_peer_dials_its_contacts_more_often_for_a_while(world, autojump_clock):
    assert world.changes.pause_s(30.0, trio.current_time()) == 30.0

    world.open.clear()

    assert world.changes.pause_s(30.0, trio.current_time()) == 3.0
    assert world.changes.pause_s(1.0, trio.current_time()) == 1.0
    assert world.changes.pause_s(30.0, trio.current_time() + 3600) == 30.0
