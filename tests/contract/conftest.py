"""One suite, three networks: libp2p on loopback, with and without bulk lanes, and the one in memory under a virtual clock."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from legion_p2p.core.identity import Identity
from tests.waiting import PATIENCE_S

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


class Swarm:
    """Starts peers; knows nothing that a peer could not know."""

    def __init__(self, nursery: trio.Nursery, open_peer: Callable[[Identity], Any]) -> None:
        self._nursery = nursery
        self._open_peer = open_peer

    async def start(self, identity: Identity | None = None) -> "Peer":
        return await self._nursery.start(self._run, identity or Identity.generate())

    async def start_connected(self, n: int) -> list["Peer"]:
        """`n` peers, each connected to the first, and answering."""
        peers = [await self.start() for _ in range(n)]
        for peer in peers:
            peer.messenger.serve(echo)
        for peer in peers[1:]:
            peer.knows(peers[0])
            await peer.messenger.request(peers[0].peer_id, b"hello")
        return peers

    async def _run(self, identity: Identity, task_status: trio.TaskStatus["Peer"]) -> None:
        with trio.CancelScope() as scope:
            async with self._open_peer(identity) as network:
                peer = Peer(network, scope)
                task_status.started(peer)
                await trio.sleep_forever()
        peer.gone.set()


class Peer:
    """A network and its off switch."""

    def __init__(self, network: Any, scope: trio.CancelScope) -> None:
        self.network = network
        self.messenger = network.messenger
        self.discovery = network.discovery
        self.gossip = network.gossip
        self.identity = network.identity
        self.peer_id = network.identity.peer_id
        self.gone = trio.Event()
        self._scope = scope

    def knows(self, other: "Peer") -> None:
        self.messenger.add_addresses(other.peer_id, other.messenger.addresses())

    async def kill(self) -> None:
        self._scope.cancel()
        await self.gone.wait()


async def echo(peer: str, body: bytes) -> bytes:
    return body


async def eventually(is_so: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
    """Return once it is so; fail if it is not in time."""
    with trio.fail_after(within_s):
        while not await is_so():  # noqa: ASYNC110
            await trio.sleep(0.05)


@pytest.fixture(params=["memory", "libp2p"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clock(kind: str) -> MockClock | None:
    return MockClock(autojump_threshold=0) if kind == "memory" else None


@pytest.fixture
async def swarm(kind: str, clock: MockClock | None, nursery: trio.Nursery):
    if kind == "memory":
        from legion_p2p.sim.network import World

        async with World(seed=1, rate_bytes_s=100e6) as world:

            @asynccontextmanager
            async def in_memory(identity: Identity):
                network = world.join(identity)
                try:
                    yield network
                finally:
                    network.close()

            yield Swarm(nursery, in_memory)
            nursery.cancel_scope.cancel()
    else:
        from legion_p2p.net.host import open_network
        from legion_p2p.net.limits import NetConfig

        config = NetConfig(bulk_lanes=kind == "lanes")
        yield Swarm(nursery, lambda identity: open_network(identity, listen=LOOPBACK, config=config))
        nursery.cancel_scope.cancel()
