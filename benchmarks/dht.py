"""The model of the DHT against the code: hops, questions and success of both, in the same network.

    python benchmarks/dht.py --nodes 1000 --minutes 20

The nodes are real ones: `net.dht.Dht` over py-libp2p's KadDHT, with its routing table, its provider store and its messages. Only
what is below is not: a connection is an entry in two sets, a stream a pair of buffers, nothing is signed, and time is virtual.
They do what `legion_p2p.scenarios.dht_model` says that nodes do.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import libp2p.kad_dht.kad_dht
import msgspec
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from trio.testing import MockClock

import legion_p2p.net.dht
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.dht import ALPHA, Dht, K, multihash_of
from legion_p2p.net.discovery import FRESH_TARGETS_S, LOOKUP_BUDGET_S, SWEEP_TABLE_S
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.patches import KAD_PROTOCOL
from legion_p2p.net.provider_search import ProviderSearch
from legion_p2p.net.tally import Tally
from legion_p2p.scenarios.dht_model import LONGEST_LOOK_S, N_ENTRIES, SHORTEST, DhtModel, DhtSettings

CONFIG = NetConfig(dht_server=True)
NO_LIMIT = 1 << 20


class Pipe:
    """One end of a stream."""

    metric_send_channel = None

    def __init__(self, peer: ID) -> None:
        self.muxed_conn = SimpleNamespace(peer_id=peer)
        self.other: Pipe
        self._unread = bytearray()
        self._arrived = trio.Event()
        self._at_end = False

    async def read(self, n: int | None = None) -> bytes:
        while not self._unread:
            if self._at_end:
                raise StreamEOF
            self._arrived = trio.Event()
            await self._arrived.wait()
        data = bytes(self._unread[:n])
        del self._unread[: len(data)]
        return data

    async def write(self, data: bytes) -> None:
        self.other._unread += data
        self.other._arrived.set()

    async def close(self) -> None:
        self.other._at_end = True
        self.other._arrived.set()

    reset = close


class Node:
    """One node: what `Dht` needs of a host, and what it does."""

    def __init__(self, world: "World", number: int, run: int | None) -> None:
        self.world = world
        self.run = run
        self.id = ID.from_base58(Identity(number.to_bytes(32, "big")).peer_id)
        self.peer_id = PeerId(str(self.id))
        self.address = Multiaddr(f"/ip4/10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/tcp/4710")
        self.connected: set[ID] = set()
        self.scope = trio.CancelScope()
        self.handlers: dict[str, Callable[[Any], Awaitable[None]]] = {}
        self.peer_data_map: dict[ID, Any] = {}
        self.dht = Dht(self, CONFIG, AddressBook(), Tally())  # type: ignore[arg-type]
        self._ask = self.dht.ask
        self.targets: list[ID] = []
        self.was_there = world.is_starting
        """It is one of those with which the network begins."""

    # what a host is to the DHT

    def get_id(self) -> ID:
        return self.id

    def get_addrs(self) -> list[Multiaddr]:
        return [self.address]

    def get_connected_peers(self) -> list[ID]:
        return list(self.connected)

    def get_network(self) -> SimpleNamespace:
        return SimpleNamespace(connections=self.connected)

    def get_peerstore(self) -> "Node":
        return self

    def get_peer_record(self, peer: ID) -> None:
        return None

    def addrs(self, peer: ID) -> list[Multiaddr]:
        return [self.world.known[peer].address]

    def get_protocols(self, peer: ID) -> list[str]:
        return [KAD_PROTOCOL]

    def set_stream_handler(self, protocol: str, handler: Callable[[Any], Awaitable[None]]) -> None:
        self.handlers[protocol] = handler

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Pipe:
        other = self.world.living.get(peer)
        if other is None:
            await trio.sleep_forever()
        assert other is not None
        await trio.sleep(self.world.settings.rtt_s)
        self.meet(other)
        here, there = Pipe(peer), Pipe(self.id)
        here.other, there.other = there, here
        self.world.nursery.start_soon(other.handlers[KAD_PROTOCOL], there)
        return here

    def meet(self, other: "Node") -> None:
        self.connected.add(other.id)
        other.connected.add(self.id)

    # what a node does

    async def live(self) -> None:
        with self.scope:
            entries = self.world.random.sample(list(self.world.living.values()), min(N_ENTRIES, len(self.world.living)))
            for other in entries:
                if other is not self:
                    self.meet(other)
                    await self.dht.remember(other.id)
                    await other.dht.remember(self.id)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_around)
                nursery.start_soon(self._sweep)
                if self.run is not None:
                    nursery.start_soon(self._announce)

    def die(self) -> None:
        self.scope.cancel()
        del self.world.living[self.id]
        for peer in self.connected:
            if peer in self.world.living:
                self.world.living[peer].connected.discard(self.id)

    async def _look_around(self) -> None:
        pause_s = LONGEST_LOOK_S if self.was_there else 1.0
        if self.was_there:
            await trio.sleep(self.world.random.uniform(0.0, LONGEST_LOOK_S))
        while True:
            with trio.move_on_after(LOOKUP_BUDGET_S):
                await self.dht.lookup(self.id.to_bytes(), ALPHA)
            await trio.sleep(self.world.jittered(pause_s))
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_TABLE_S)
            self.dht.drop_stale()

    async def _announce(self) -> None:
        if self.was_there:
            await trio.sleep(self.world.random.uniform(0.0, FRESH_TARGETS_S))
        assert self.run is not None
        place, looks_at = self.world.places[self.run], -math.inf
        while True:
            if trio.current_time() >= looks_at:
                if self.dht.size() <= K:
                    self.targets = self.dht.closest_known(place, CONFIG.replication)
                else:
                    depths = Depths(self)
                    with trio.move_on_after(LOOKUP_BUDGET_S):
                        self.targets = await depths.watching(self.dht.lookup(place, CONFIG.replication))
                        self.world.note_lookup(place, self, depths)
                looks_at = trio.current_time() + self.world.jittered(FRESH_TARGETS_S)
            async with trio.open_nursery() as nursery:
                for target in self.targets:
                    nursery.start_soon(self.dht.announce, target, [place])
            await trio.sleep(self.world.jittered(CONFIG.provider_lifetime_s / 3))

    async def search(self, run: int) -> None:
        """As discovery does: what is named is asked whether it is one, and where none is, more nodes are asked."""
        place, began_at, depths = self.world.places[run], trio.current_time(), Depths(self)

        async def confirm(peer: PeerId) -> Contact | None:
            other = self.world.living.get(ID.from_base58(peer))
            return Contact(peer, ()) if other is not None and other.run == run else None

        search = ProviderSearch(self.peer_id, confirm, NO_LIMIT)  # otherwise a search ends with the twentieth
        async with trio.open_nursery() as nursery:
            nursery.start_soon(search.confirm_candidates, nursery)
            with trio.move_on_after(LOOKUP_BUDGET_S):
                await depths.watching(self.dht.lookup(place, ALPHA, search.add, search.n_nodes_to_ask))
            took_s = trio.current_time() - began_at
            await search.settled()
            nursery.cancel_scope.cancel()
        self.world.searches.append((depths.hops if search.confirmed else 0, depths.n_questions, took_s))


class Depths:
    """Of one lookup: by how many answers each node was come upon."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._depth: dict[ID, int] = {}
        self.n_questions = 0
        self.hops = 0
        """Answers until the first that named a living provider."""

    async def watching(self, lookup: Awaitable[list[ID]]) -> list[ID]:
        self._node.dht.ask = self._asked  # type: ignore[method-assign]
        try:
            return await lookup
        finally:
            self._node.dht.ask = self._node._ask  # type: ignore[method-assign]

    def of(self, peer: ID) -> int:
        return self._depth.get(peer, 1)

    async def _asked(self, peer: ID, questions: Sequence[Message]) -> list[Message]:
        if questions[0].type == Message.MessageType.ADD_PROVIDER:
            return await self._node._ask(peer, questions)
        self._depth.setdefault(peer, 1)
        self.n_questions += 1
        answers = await self._node._ask(peer, questions)
        for answer in answers:
            for entry in answer.closerPeers:
                self._depth.setdefault(ID(entry.id), self._depth[peer] + 1)
            names_one = any(ID(entry.id) in self._node.world.living for entry in answer.providerPeers)
            if names_one and not self.hops:
                self.hops = self._depth[peer]
        return answers


class World:
    """All nodes."""

    def __init__(self, settings: DhtSettings, seed: int) -> None:
        self.settings = settings
        self.random = random.Random(seed)
        self.living: dict[ID, Node] = {}
        self.known: dict[ID, Node] = {}
        self.is_starting = True
        self.nursery: trio.Nursery
        n_runs = max(1, round(settings.n_nodes * settings.provider_share / settings.run_size))
        self.places = [multihash_of(f"run {run}") for run in range(n_runs)]
        self.searches: list[tuple[int, int, float]] = []
        self.lookups: list[tuple[int, int, bool]] = []
        self.n_nodes = 0

    def jittered(self, pause_s: float) -> float:
        return pause_s * self.random.uniform(SHORTEST, 1.0)

    def begin(self, run: int | None) -> None:
        node = Node(self, self.n_nodes, run)
        self.n_nodes += 1
        self.living[node.id] = self.known[node.id] = node
        self.nursery.start_soon(node.live)

    @property
    def is_measured(self) -> bool:
        return trio.current_time() > 0.75 * self.settings.duration_s

    def note_lookup(self, place: bytes, node: Node, depths: Depths) -> None:
        if self.is_measured and node.targets:
            target = int.from_bytes(_hashed(place), "big")
            best = min((other for other in self.living if other != node.id), key=lambda one: _place_of(one) ^ target)
            self.lookups.append((depths.of(node.targets[0]), depths.n_questions, node.targets[0] == best))

    async def run(self) -> dict[str, float]:
        settings, began_s = self.settings, time.process_time()
        n_providers = round(settings.n_nodes * settings.provider_share)
        async with trio.open_nursery() as self.nursery:
            for i in range(settings.n_nodes):
                self.begin(i % len(self.places) if i < n_providers else None)
            await trio.sleep(0.0)
            self.is_starting = False
            if settings.session_s:
                self.nursery.start_soon(self._replace)
            await trio.sleep(0.75 * settings.duration_s)
            for _ in range(settings.n_searches):
                await trio.sleep(0.25 * settings.duration_s / settings.n_searches)
                node = self.random.choice(list(self.living.values()))
                self.nursery.start_soon(node.search, self.random.randrange(len(self.places)))
            await trio.sleep(LOOKUP_BUDGET_S)
            self.nursery.cancel_scope.cancel()
        found = [hops for hops, _, _ in self.searches if hops]
        return {
            "n_searches": len(self.searches),
            "success": len(found) / len(self.searches),
            "search_hops": statistics.fmean(found),
            "search_questions": statistics.fmean(n for _, n, _ in self.searches),
            "search_s": statistics.fmean(s for _, _, s in self.searches),
            "lookup_hops": statistics.fmean(hops for hops, _, _ in self.lookups),
            "lookup_questions": statistics.fmean(n for _, n, _ in self.lookups),
            "exact": statistics.fmean(is_exact for _, _, is_exact in self.lookups),
            "n_known": statistics.fmean(node.dht.size() for node in self.living.values()),
            "n_gone": self.n_nodes - settings.n_nodes,
            "cpu_s": time.process_time() - began_s,
        }

    async def _replace(self) -> None:
        mean_s = self.settings.session_s / math.log(2)
        while True:
            await trio.sleep(self.random.expovariate(self.settings.n_nodes / mean_s))
            gone = self.random.choice(list(self.living.values()))
            gone.die()
            self.begin(gone.run)


def _hashed(place: bytes) -> bytes:
    return hashlib.sha256(place).digest()


def _place_of(peer: ID) -> int:
    return int.from_bytes(_hashed(peer.to_bytes()), "big")


@contextmanager
def as_simulated() -> Iterator[MockClock]:
    """A clock that jumps, which `time.time` follows, because libp2p's tables look at that one; and nobody signs anything."""
    clock, real, began = MockClock(autojump_threshold=0.0), time.time, time.time()
    kad = libp2p.kad_dht.kad_dht
    before = [(module, name, getattr(module, name)) for module, name in (
        (legion_p2p.net.dht, "env_to_send_in_RPC"), (kad, "env_to_send_in_RPC"), (kad, "maybe_consume_signed_record"),
    )]  # fmt: skip
    time.time = lambda: began + clock.current_time()
    for module, name, _ in before:
        setattr(module, name, (lambda *_: True) if name.startswith("maybe") else (lambda host: (b"", False)))
    try:
        yield clock
    finally:
        time.time = real
        for module, name, value in before:
            setattr(module, name, value)


def figures_of_code(settings: DhtSettings, seed: int) -> dict[str, float]:
    """What real nodes come to."""
    with as_simulated() as clock:
        return trio.run(World(settings, seed).run, clock=clock)


def figures_of_model(settings: DhtSettings, seed: int) -> dict[str, float]:
    """What the model comes to."""
    figures: dict[str, float] = msgspec.to_builtins(DhtModel(settings, seed).run())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=20.0, help="virtual ones, of which the last quarter is measured")
    parser.add_argument("--session", type=float, default=60.0, help="minutes that a node stays, median")
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--run-size", type=int, default=5, help="nodes that provide the same")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = DhtSettings(
        n_nodes=args.nodes,
        duration_s=60 * args.minutes,
        session_s=60 * args.session,
        n_searches=args.searches,
        run_size=args.run_size,
    )
    for figures_of in (figures_of_model, figures_of_code):
        figures = {key: round(value, 4) for key, value in figures_of(settings, args.seed).items()}
        print(json.dumps({"what": figures_of.__name__.removeprefix("figures_of_"), **figures}), flush=True)


if __name__ == "__main__":
    main()
