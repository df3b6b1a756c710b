"""A network in memory: the same ports as legion_p2p.net, the same limits and errors, under trio's virtual clock.

`World` holds the peers and what lies between them; `World.join` gives a peer its messenger, discovery and gossip. A request takes
the delay between two peers each way, bulk also takes its turn at the rate between them, and every fault of the real network can
be caused on demand. Where peers have access links (`links`: core/access_link.py), all bulk of a peer shares its own, but a
message passes that of the sender and that of the receiver one after the other. What a peer sends takes turns by priority and by
receiver; what it receives does not. Control takes up no rate.

| fault | what others see |
|---|---|
| `kill` | requests fail after one delay, as by a connection reset; dialing is refused |
| `freeze` | SIGSTOP: no answers until `thaw`, connections stay |
| `hide` | it cannot be dialed, as behind a NAT: others reach it over connections that it made, or through its relays |
| `partition` | packets vanish: established connections break after BREAK_AFTER_S, dialing fails after DIAL_TIMEOUT_S |
| `loss` | a request's connection breaks, before or after it was carried out |
| `corrupt` | bytes arrive changed |

The same seed gives the same run, to the last event, under `trio.testing.MockClock(autojump_threshold=0)`.
"""

import math
import random
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from importlib import import_module
from types import TracebackType
from typing import Any

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.errors import ClosedError, UnreachableError, UsageError
from legion_p2p.sim.client import reset
from legion_p2p.sim.fabric import BetweenPeers
from legion_p2p.sim.mail import Mail
from legion_p2p.sim.obstacles import Obstacles, Wall
from legion_p2p.sim.providers import ProviderRecords
from legion_p2p.sim.rates import Rates
from legion_p2p.sim.request import BREAK_AFTER_S
from legion_p2p.sim.station import SimNetwork
from legion_p2p.sim.timers import Timers

Corrupt = Callable[[PeerId, PeerId, bytes], bytes]


class World:
    """All peers, and what lies between them. An async context manager: its peers' tasks end with it."""

    def __init__(
        self,
        seed: int = 0,
        *,
        delay_s: float | BetweenPeers = 0.005,
        rate_bytes_s: float | BetweenPeers = math.inf,
        up_bytes_s: float = math.inf,
        loss: float = 0.0,
        links: MutableMapping[PeerId, LinkProfile] | None = None,
        gossip_takes_links: bool = False,
    ) -> None:
        """`delay_s`: one way; `rate_bytes_s`: of bulk between two peers; either may be a function of (from, to). `up_bytes_s`: of
        all bulk that one peer sends. `loss`: of requests, 0 to 1. `links`: the access link of each peer, in place of these rates;
        peers that join later are added to it before they do. `gossip_takes_links`: gossip has their delays, too, and otherwise
        `delay_s` from one peer to the next."""
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.rate_bytes_s = rate_bytes_s
        self.loss = loss
        self.links = links
        self.gossip_takes_links = gossip_takes_links and links is not None
        self.corrupt: Corrupt | None = None
        """Called with (from, to, bytes) for each body and each gossip message; returns what arrives."""
        self.bandwidths: dict[PeerId, Bandwidth] = {}
        """The bandwidth that peers believe they have measured; of a peer that is not in it, the limits of its link."""
        self.hosts: dict[PeerId, str] = {}
        """The IP addresses that others see of peers; of one that is not in it, none."""
        self._seed = seed
        self._peers: dict[PeerId, SimNetwork] = {}
        self.providers = ProviderRecords()
        self._obstacles = Obstacles()
        self._carried: dict[frozenset[PeerId], PeerId] = {}
        self.changed = Notify()
        """Somebody joined, left, froze, thawed or was hidden, or a wall was put up or taken down."""
        self.timers = Timers()
        self.mail = Mail(self)
        self.rates = Rates(seed, up_bytes_s, links, self.start, self.timers)
        self._n_joined = 0
        self._nursery: trio.Nursery | None = None
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> "World":
        # trio shuffles what is runnable at the same instant; this is the switch it has for repeatable tests
        trio_run: Any = import_module("trio._core._run")
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
        trio_run._r.seed(self._seed)
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self.timers.run)
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

    def join(self, identity: Identity) -> SimNetwork:
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
            for other in sorted(network.connections):
                self._nursery.start_soon(self._notice_reset, self._peers[other], peer)
            for ends in [ends for ends, relay in self._carried.items() if relay == peer]:
                self._nursery.start_soon(self._end_circuit, *sorted(ends))
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

    def partition(self, one: Iterable[PeerId], other: Iterable[PeerId] | None = None) -> Wall:
        """Let nothing through between the two groups, until `heal`. `other` None: everybody else, also those that come later."""
        wall = self._obstacles.partition(one, other)
        self._change()
        return wall

    def heal(self, wall: Wall | None = None) -> None:
        """Undo one partition, or all of them."""
        self._obstacles.heal(wall)
        self._change()

    def hide(self, peer: PeerId, relays: Iterable[PeerId] = (), but_from: Iterable[PeerId] = ()) -> None:
        """From now on nobody can dial it directly `but_from` these, as behind the same router; others can through these relays.
        What is connected stays so."""
        self._obstacles.hide(peer, relays, but_from)
        self._change()

    def show(self, peer: PeerId) -> None:
        """Undo `hide`. What is connected through a relay stays so."""
        self._obstacles.show(peer)
        self._change()

    # what lies between two peers

    def delay(self, source: PeerId, target: PeerId) -> float:
        """One way."""
        relay = self.relay_between(source, target)
        if relay is not None:
            return self._direct_delay(source, relay) + self._direct_delay(relay, target)
        return self._direct_delay(source, target)

    def _direct_delay(self, source: PeerId, target: PeerId) -> float:
        if self.links is not None:
            one, other = self.links[source], self.links[target]
            return (one.rtt_s + other.rtt_s + one.path_s(other.place)) / 2
        return self.delay_s(source, target) if callable(self.delay_s) else self.delay_s

    def is_blocked(self, a: PeerId, b: PeerId) -> bool:
        """Whether a partition separates them."""
        return self._obstacles.is_blocked(a, b)

    def can_dial(self, source: PeerId, target: PeerId) -> bool:
        """Whether a direct connection can be made from one to the other."""
        return self._obstacles.can_dial(source, target)

    def usable_relay(self, source: PeerId, target: PeerId) -> PeerId | None:
        """One of the relays of `target` that carries for `source` now: an end of the circuit itself is none."""
        for relay in self._obstacles.relays_of(target):
            if relay not in (source, target) and self._carries(relay, source, target):
                return relay
        return None

    def relay_between(self, a: PeerId, b: PeerId) -> PeerId | None:
        """What carries their connection; None where it is direct, or there is none."""
        return None if not self._carried else self._carried.get(frozenset((a, b)))

    def _carries(self, relay: PeerId, a: PeerId, b: PeerId) -> bool:
        network = self.peer(relay)
        return network is not None and not (network.frozen or self.is_blocked(a, relay) or self.is_blocked(relay, b))

    @property
    def is_split(self) -> bool:
        """Whether there is any partition."""
        return bool(self._obstacles.walls)

    async def travel(self, source: PeerId, target: PeerId, n_bytes: int, priority: Priority) -> None:
        """Return when the bytes have arrived. Control takes up no rate.

        Raises: UnreachableError, if they never do.
        """
        is_bulk = priority is not Priority.CONTROL
        relay = self.relay_between(source, target)
        if is_bulk:
            for sender in (source, relay):
                if sender is not None:
                    await self.rates.send(sender, target, n_bytes, priority)
        if is_bulk and self.links is not None:
            await self.rates.pass_links(source, target, n_bytes)
        else:
            wait_s = self.delay(source, target)
            if is_bulk:
                rate = self.rate_bytes_s(source, target) if callable(self.rate_bytes_s) else self.rate_bytes_s
                wait_s += self.rates.turn_s(source, target, n_bytes / rate) if rate != math.inf else 0.0
            await self.timers.sleep_until(trio.current_time() + wait_s)
        await self.wait_through(source, target, relay)

    def flight_s(self, source: PeerId, target: PeerId, priority: Priority) -> float | None:
        """Seconds that bytes are on their way, as `travel` has it, where only the delay counts; None: where more does."""
        is_free = self.rates.are_endless and self.rate_bytes_s == math.inf
        if self._carried or not (is_free or priority is Priority.CONTROL):
            return None
        return self._direct_delay(source, target)

    def is_held_up(self, source: PeerId, target: PeerId) -> bool:
        """Whether `wait_through` has to wait, or to look."""
        return bool(self._carried or self._obstacles.walls) or self._peers[source].frozen or self._peers[target].frozen

    async def wait_through(self, source: PeerId, target: PeerId, relay: PeerId | None = None) -> None:
        """Wait while an end or the relay is frozen, without limit, or while a partition lasts, for as long as TCP tries."""
        if relay is None and not (self._obstacles.walls or self._peers[source].frozen or self._peers[target].frozen):
            return  # as nearly always
        hops = [(source, target)] if relay is None else [(source, relay), (relay, target)]
        ends = {end for hop in hops for end in hop}
        while True:
            if relay is not None and self.peer(relay) is None:
                raise UnreachableError(target, "the connection broke")
            if any(self.is_blocked(*hop) for hop in hops):
                with trio.move_on_after(BREAK_AFTER_S) as patience:
                    while any(self.is_blocked(*hop) for hop in hops):
                        await self.changed.wait()
                if patience.cancelled_caught:
                    raise UnreachableError(target, "the connection broke")
            elif any(self._peers[end].frozen for end in ends):
                await self.changed.wait()
            else:
                return

    def peer(self, peer: PeerId) -> SimNetwork | None:
        """It, if it is alive."""
        network = self._peers.get(peer)
        return network if network is not None and network.alive else None

    def networks(self) -> Iterable[SimNetwork]:
        """All peers that ever joined."""
        return self._peers.values()

    def network_of(self, peer: PeerId) -> SimNetwork:
        """A peer that joined once, dead or alive."""
        return self._peers[peer]

    def arrives(self, source: PeerId, target: PeerId, data: bytes) -> bytes:
        """What becomes of bytes on the way."""
        return data if self.corrupt is None else self.corrupt(source, target, data)

    def start(self, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task as long as the world lasts."""
        if self._nursery is None:
            raise ClosedError("the world has ended")
        self._nursery.start_soon(fn, *args)

    def connect(self, a: PeerId, b: PeerId, relay: PeerId | None = None) -> None:
        """Note a connection between two peers."""
        if relay is not None:
            self._carried[frozenset((a, b))] = relay
        for one, other in ((a, b), (b, a)):
            self._peers[one].connections.add(other)
        self.mail.connections_changed()

    def disconnect(self, a: PeerId, b: PeerId) -> None:
        """Note that it is over."""
        self._carried.pop(frozenset((a, b)), None)
        for one, other in ((a, b), (b, a)):
            if one in self._peers:
                self._peers[one].connections.discard(other)
        self.mail.connections_changed()

    async def _end_circuit(self, a: PeerId, b: PeerId) -> None:
        await trio.sleep(self.delay(a, b) / 2)
        self.disconnect(a, b)

    async def _notice_reset(self, network: SimNetwork, dead: PeerId) -> None:
        await trio.sleep(self.delay(dead, network.peer_id))
        if not self.is_blocked(network.peer_id, dead):
            self.disconnect(network.peer_id, dead)

    def _change(self) -> None:
        self.changed.notify()
        self.mail.peers_changed()
