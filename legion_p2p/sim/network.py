"""A network in memory: the same ports as legion_p2p.net, the same limits and errors, under trio's virtual clock.

`World` holds the peers and what lies between them; `World.join` gives a peer its messenger, discovery and gossip. Requests take
the link's delay each way, bulk takes its turn at the link's rate, and every fault that the real network has can be had on
demand. Where peers have access links (`links`: core/access_link.py), all bulk of a peer shares its own; but a message passes
the sender's and the receiver's one after the other. What a peer sends takes turns by rank and by receiver; what it receives does
not. Control takes up no rate.

| fault | what others see |
|---|---|
| `kill` | requests fail after one delay, as by a connection reset; dialing is refused |
| `freeze` | SIGSTOP: no answers until `thaw`, connections stay |
| `partition` | packets vanish: established connections break after BREAK_AFTER_S, dialing fails after DIAL_TIMEOUT_S |
| `loss` | a request's connection breaks, before or after it was carried out |
| `corrupt` | bytes arrive changed |

The same seed gives the same run, to the last event, under `trio.testing.MockClock(autojump_threshold=0)`.
"""

import heapq
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import trio

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import ClosedError, UnreachableError, UsageError
from legion_p2p.services.ports import Bandwidth, Contact, Lane
from legion_p2p.sim.access import Access, Uplink
from legion_p2p.sim.discovery import PROVIDER_LIFETIME_S, SimDiscovery
from legion_p2p.sim.gossip import SimGossip
from legion_p2p.sim.messenger import BREAK_AFTER_S, Exchange, SimMessenger, reset

MAX_HELD = 1024  # messages that wait for a frozen peer

Link = Callable[[PeerId, PeerId], float]
Corrupt = Callable[[PeerId, PeerId, bytes], bytes]


class World:
    """All peers, and what lies between them. An async context manager: its peers' tasks end with it."""

    def __init__(
        self,
        seed: int = 0,
        *,
        delay_s: float | Link = 0.005,
        rate_bytes_s: float | Link = math.inf,
        up_bytes_s: float = math.inf,
        loss: float = 0.0,
        links: Mapping[PeerId, LinkProfile] | None = None,
    ) -> None:
        """`delay_s`: one way; `rate_bytes_s`: of bulk between two peers; either may be a function of (from, to). `up_bytes_s`: of
        all bulk that one peer sends. `loss`: of requests, 0 to 1. `links`: the access link of each peer, in place of these rates;
        peers that join later are added to it before they do."""
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.rate_bytes_s = rate_bytes_s
        self.up_bytes_s = up_bytes_s
        self.loss = loss
        self.links = links
        self.corrupt: Corrupt | None = None
        """Called with (from, to, bytes) for each body and each gossip message; returns what arrives."""
        self.bandwidths: dict[PeerId, Bandwidth] = {}
        """What peers find to have measured of their connections; their limits, where it is not said here."""
        self._seed = seed
        self._peers: dict[PeerId, SimNetwork] = {}
        self._records: dict[str, dict[PeerId, tuple[float, tuple[str, ...]]]] = {}
        self._walls: list[tuple[frozenset[PeerId], frozenset[PeerId]]] = []
        self._changed = trio.Event()
        self._busy_until: dict[tuple[PeerId, PeerId], float] = {}
        self._uplinks: dict[PeerId, Uplink] = {}
        self._access: dict[PeerId, Access] = {}
        self._n_joined = 0
        self._nursery: trio.Nursery | None = None
        self._manager = trio.open_nursery()
        self._mail: list[tuple[float, int, SimNetwork, str, bytes]] = []
        self._n_mailed = 0
        self._mail_came = trio.Event()
        self._routes: dict[tuple[str, PeerId], list[tuple[SimNetwork, float]]] = {}
        self._wanting: dict[str, set[PeerId]] = {}

    async def __aenter__(self) -> "World":
        # trio shuffles what is runnable at the same instant; this is the switch it has for repeatable tests
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True
        trio._core._run._r.seed(self._seed)
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._deliver_mail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.cancel_scope.cancel()
        try:
            return await self._manager.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if error is not None and list(group.exceptions) == [error]:
                return False  # the body's own exception comes out as it is
            raise

    def join(self, identity: Identity) -> "SimNetwork":
        """A peer's network. A killed or closed peer may join again, at another address."""
        if self._nursery is None:
            raise UsageError("the world is not running: async with World(...)")
        old = self._peers.get(identity.peer_id)
        if old is not None and old.alive:
            raise UsageError(f"{identity.peer_id} is in this world already")
        self._n_joined += 1
        n = self._n_joined
        address = f"/ip4/10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/tcp/4710"
        network = self._peers[identity.peer_id] = SimNetwork(self, identity, address)
        self._change()
        return network

    # faults

    def kill(self, peer: PeerId) -> None:
        """End it as by SIGKILL: its handlers stop where they are, its requests fail, others notice a delay later."""
        network = self._peers[peer]
        network.die()
        self._change()
        if self._nursery is not None:  # else the world has ended, and nobody is there to notice
            for other in sorted(network.messenger.links):
                self._nursery.start_soon(self._notice_reset, self._peers[other], peer)
            for exchange, asker in network.asked.items():
                self._nursery.start_soon(reset, self, exchange, asker, network)

    def freeze(self, peer: PeerId) -> None:
        """Stop it as by SIGSTOP: it neither answers nor gets anything out."""
        self._peers[peer].frozen = True
        self._change()

    def thaw(self, peer: PeerId) -> None:
        """Let it go on."""
        network = self._peers[peer]
        network.frozen = False
        held, network.held = network.held, []
        for topic, data in held:
            network.gossip.receive(topic, data)
        self._change()

    def partition(self, one: Iterable[PeerId], other: Iterable[PeerId]) -> None:
        """Let nothing through between the two groups, until `heal`."""
        self._walls.append((frozenset(one), frozenset(other)))
        self._change()

    def heal(self) -> None:
        """Undo all partitions."""
        self._walls.clear()
        self._change()

    # what lies between two peers

    def delay(self, source: PeerId, target: PeerId) -> float:
        """One way."""
        if self.links is not None:
            one, other = self.links[source], self.links[target]
            return (one.rtt_s + other.rtt_s + one.path_s(other.place)) / 2
        return self.delay_s(source, target) if callable(self.delay_s) else self.delay_s

    def is_blocked(self, a: PeerId, b: PeerId) -> bool:
        """Whether a partition separates them."""
        return any((a in one and b in other) or (b in one and a in other) for one, other in self._walls)

    async def travel(self, source: PeerId, target: PeerId, n_bytes: int, lane: Lane, rank: int = 0) -> None:
        """Return when the bytes have arrived. `rank`: see `Messenger.request`.

        Raises: UnreachableError, if they never do.
        """
        if lane.value == "bulk" and (uplink := self._uplink_of(source)) is not None:
            await uplink.send(target, n_bytes, rank)
        if self.links is not None and lane.value == "bulk":
            await trio.sleep_until(self._access_of(source).up(target, self.links[target].place, n_bytes))
            await trio.sleep_until(self._access_of(target).down(source, n_bytes))
            await self._wait_through(source, target)
            return
        wait_s = self.delay(source, target)
        if lane.value == "bulk":
            rate = self.rate_bytes_s(source, target) if callable(self.rate_bytes_s) else self.rate_bytes_s
            now = trio.current_time()
            begin = max(now, self._busy_until.get((source, target), now))
            self._busy_until[source, target] = begin + n_bytes / rate
            wait_s += begin + n_bytes / rate - now
        await trio.sleep(wait_s)
        await self._wait_through(source, target)

    def limits_bps(self, peer: PeerId) -> tuple[float | None, float | None]:
        """What its access link carries, up and down; None where nothing limits it."""
        profile = None if self.links is None else self.links[peer]
        if profile is None:
            return None, None
        up, down = (bps if math.isfinite(bps) else None for bps in (profile.up_bps, profile.down_bps))
        return up, down

    def _uplink_of(self, peer: PeerId) -> Uplink | None:
        bytes_s = self.up_bytes_s if self.links is None else self.links[peer].up_bps / 8
        if bytes_s == math.inf:
            return None
        return self._uplinks.setdefault(peer, Uplink(bytes_s, self.start))

    def _access_of(self, peer: PeerId) -> Access:
        assert self.links is not None
        if peer not in self._access:
            self._access[peer] = Access(self.links[peer], random.Random(f"{self._seed}/{peer}"))
        return self._access[peer]

    async def _wait_through(self, source: PeerId, target: PeerId) -> None:
        """Wait while a frozen end holds things up, for ever, or a partition does, for as long as TCP tries."""
        while True:
            if self.is_blocked(source, target):
                with trio.move_on_after(BREAK_AFTER_S) as patience:
                    while self.is_blocked(source, target):
                        await self._changed.wait()
                if patience.cancelled_caught:
                    raise UnreachableError(target, "the connection broke")
            elif self._peers[source].frozen or self._peers[target].frozen:
                await self._changed.wait()
            else:
                return

    async def wait_change(self) -> None:
        """Until somebody joins, leaves, freezes, thaws, or a wall is put up or taken down."""
        await self._changed.wait()

    def peer(self, peer: PeerId) -> "SimNetwork | None":
        """It, if it is alive."""
        network = self._peers.get(peer)
        return network if network is not None and network.alive else None

    def arrives(self, source: PeerId, target: PeerId, data: bytes) -> bytes:
        """What becomes of bytes on the way."""
        return data if self.corrupt is None else self.corrupt(source, target, data)

    def start(self, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task as long as the world lasts."""
        if self._nursery is None:
            raise ClosedError("the world has ended")
        self._nursery.start_soon(fn, *args)

    def connect(self, a: PeerId, b: PeerId) -> None:
        """Note a connection between two peers."""
        for one, other in ((a, b), (b, a)):
            self._peers[one].messenger.links.add(other)
        self._routes.clear()

    def disconnect(self, a: PeerId, b: PeerId) -> None:
        """Note that it is over."""
        for one, other in ((a, b), (b, a)):
            if one in self._peers:
                self._peers[one].messenger.links.discard(other)
        self._routes.clear()

    async def _notice_reset(self, network: "SimNetwork", dead: PeerId) -> None:
        await trio.sleep(self.delay(dead, network.peer_id))
        if not self.is_blocked(network.peer_id, dead):
            self.disconnect(network.peer_id, dead)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._routes.clear()
        self._wanting.clear()

    # discovery

    def record(self, key: str, network: "SimNetwork") -> None:
        """Store that it provides the key, as the DHT would."""
        until = trio.current_time() + PROVIDER_LIFETIME_S
        self._records.setdefault(key, {})[network.peer_id] = (until, network.messenger.addresses())

    def recorded(self, key: str) -> list[Contact]:
        """Who is said to provide the key: also those that no longer do."""
        records = self._records.get(key, {})
        now = trio.current_time()
        for peer in [peer for peer, (until, _) in records.items() if until < now]:
            del records[peer]
        return [Contact(peer, addresses) for peer, (_, addresses) in sorted(records.items())]

    # gossip

    def publish(self, source: "SimNetwork", topic: str, data: bytes) -> None:
        """Pass a message on along connections between subscribers, at the links' delays."""
        for target, delay_s in self._route(topic, source):
            arrived = self.arrives(source.peer_id, target.peer_id, data)
            self._n_mailed += 1
            heapq.heappush(self._mail, (trio.current_time() + delay_s, self._n_mailed, target, topic, arrived))
        self._mail_came.set()

    def topics_changed(self) -> None:
        """Somebody subscribed or left."""
        self._routes.clear()
        self._wanting.clear()

    def _route(self, topic: str, source: "SimNetwork") -> list[tuple["SimNetwork", float]]:
        """Whom a message reaches, and after how long: the fastest path over connections between subscribers."""
        key = (topic, source.peer_id)
        if key not in self._routes:
            wanting = self._wanting.get(topic)
            if wanting is None:
                wanting = {peer for peer, network in self._peers.items() if network.alive and network.gossip.wants(topic)}
                self._wanting[topic] = wanting
            reached = (
                self._flood(source, wanting) if callable(self.delay_s) else self._flood_evenly(source, wanting, self.delay_s)
            )
            self._routes[key] = [(self._peers[peer], delay_s) for peer, delay_s in reached.items()]
        return self._routes[key]

    def _flood(self, source: "SimNetwork", wanting: set[PeerId]) -> dict[PeerId, float]:
        """Everybody that is reached, and when, in that order."""
        reached: dict[PeerId, float] = {}
        frontier = [(0.0, source.peer_id)]
        while frontier:
            delay_s, at = heapq.heappop(frontier)
            if at in reached:
                continue
            reached[at] = delay_s
            for to in self._next(at, wanting):
                if to not in reached:
                    heapq.heappush(frontier, (delay_s + self.delay(at, to), to))
        del reached[source.peer_id]
        return reached

    def _flood_evenly(self, source: "SimNetwork", wanting: set[PeerId], hop_s: float) -> dict[PeerId, float]:
        """`_flood`, where all connections are as fast as each other: quicker by far."""
        reached: dict[PeerId, float] = {}
        left = wanting - {source.peer_id}
        frontier, delay_s = [source.peer_id], 0.0
        while frontier and left:
            delay_s += hop_s
            here: set[PeerId] = set()
            for at in frontier:
                here.update(self._next(at, left - here))
                if len(here) == len(left):
                    break
            left -= here
            frontier = sorted(here)
            reached.update(dict.fromkeys(frontier, delay_s))
        return reached

    def _next(self, at: PeerId, wanting: set[PeerId]) -> set[PeerId]:
        """Whom of these it passes a message on to. A frozen peer passes nothing on, but gets it when it thaws."""
        network = self._peers[at]
        if network.frozen:
            return set()
        linked = network.messenger.links & wanting
        return {to for to in linked if not self.is_blocked(at, to)} if self._walls else linked

    async def _deliver_mail(self) -> None:
        while True:
            while not self._mail:
                self._mail_came = trio.Event()
                await self._mail_came.wait()
            due = self._mail[0][0]
            if due > trio.current_time():
                self._mail_came = trio.Event()
                with trio.move_on_at(due):
                    await self._mail_came.wait()
                continue
            _, _, target, topic, data = heapq.heappop(self._mail)
            if not target.alive:
                continue
            if target.frozen:
                target.held = [*target.held, (topic, data)][-MAX_HELD:]
            else:
                target.gossip.receive(topic, data)


class SimNetwork:
    """What `open_network` gives, in a `World`."""

    def __init__(self, world: World, identity: Identity, address: str) -> None:
        self.identity = identity
        self.alive = True
        self.frozen = False
        self.held: list[tuple[str, bytes]] = []
        self.dial_reports: dict[str, str | None] = {}
        self.messenger = SimMessenger(world, self, address)
        self.discovery = SimDiscovery(world, self)
        self.gossip = SimGossip(world, self)
        self.died = trio.Event()
        self.asked: dict[Exchange, PeerId] = {}
        """Requests to this peer that are under way, and whose they are."""
        self._world = world
        self._scopes: dict[trio.CancelScope, None] = {}

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def addresses(self) -> tuple[str, ...]:
        """Ending in /p2p/<id>."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self.messenger.addresses())

    async def join(self) -> None:
        """Nothing to do: everybody in a world can be found."""
        await trio.lowlevel.checkpoint()

    def keep_contacts(self) -> None:
        """Nothing to do either."""

    def close(self) -> None:
        """Leave. To the others it looks as if killed: leaving properly is the services' business."""
        if self.alive:
            self._world.kill(self.peer_id)

    def die(self) -> None:
        self.alive = False
        self.died.set()
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def until_death(self) -> Iterator[None]:
        """What is done here ends when this peer dies, without an error."""
        with trio.CancelScope() as scope:
            self._scopes[scope] = None
            if not self.alive:
                scope.cancel()
            try:
                yield
            finally:
                del self._scopes[scope]
