"""What the parts of a simulated peer see of their world (network.py: `World`) and of other peers (station.py: `SimNetwork`)."""

import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.contact import Bandwidth, Handler
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.peer_score import Refusals
from legion_p2p.sim.providers import ProviderRecords
from legion_p2p.sim.request import RequestOutcome, RequestUnderWay
from legion_p2p.sim.timers import Timers

BetweenPeers = Callable[[PeerId, PeerId], float]


class Answering(Protocol):
    """A peer's end of the requests of others."""

    async def handle(self, outcome: RequestOutcome, asker: PeerId, service: str, body: bytes, lane: str) -> None: ...


class StationMessenger(Protocol):
    """A peer's messenger, to the others."""

    @property
    def server(self) -> Answering: ...

    @property
    def book(self) -> AddressBook: ...

    def serve_internally(self, service: str, handler: Handler) -> None: ...

    async def call(self, peer: PeerId, service: str, body: bytes) -> bytes: ...

    def rtt_s(self, peer: PeerId) -> float | None: ...


class StationGossip(Protocol):
    """A peer's end of the gossip."""

    def wants(self, topic: str) -> bool: ...

    def receive(self, topic: str, data: bytes) -> None: ...


class Station(Protocol):
    """One peer of the world."""

    alive: bool
    frozen: bool
    held: list[tuple[str, bytes]]
    address: str
    connections: set[PeerId]
    n_sent: int
    n_received: int
    n_gossip: int
    """Bytes of gossip that have reached it."""
    handler_errors: list[Exception]
    """Failures of its handlers that are mistakes in the program, not answers."""
    refusals: Refusals
    died: trio.Event
    asked: dict[RequestUnderWay, PeerId]
    asking: set[RequestUnderWay]

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def messenger(self) -> StationMessenger: ...

    @property
    def gossip(self) -> StationGossip: ...


class Post(Protocol):
    """The gossip that is on its way."""

    def publish(self, source: Station, topic: str, data: bytes) -> None: ...

    def peers_changed(self) -> None: ...


class LinkRates(Protocol):
    """What the access links of peers carry."""

    def limits_bps(self, peer: PeerId) -> tuple[float | None, float | None]: ...


class Fabric(Protocol):
    """The world: all peers, and what lies between them."""

    random: random.Random
    delay_s: float | BetweenPeers
    gossip_takes_links: bool
    loss: float
    bandwidths: dict[PeerId, Bandwidth]
    hosts: dict[PeerId, str]
    changed: Notify
    timers: Timers
    providers: ProviderRecords

    @property
    def mail(self) -> Post: ...

    @property
    def rates(self) -> LinkRates: ...

    @property
    def is_split(self) -> bool: ...

    def kill(self, peer: PeerId) -> None: ...

    def delay(self, source: PeerId, target: PeerId) -> float: ...

    def is_blocked(self, a: PeerId, b: PeerId) -> bool: ...

    def can_dial(self, source: PeerId, target: PeerId) -> bool: ...

    def usable_relay(self, source: PeerId, target: PeerId) -> PeerId | None: ...

    def relay_between(self, a: PeerId, b: PeerId) -> PeerId | None: ...

    async def travel(self, source: PeerId, target: PeerId, n_bytes: int, priority: Priority) -> None: ...

    def flight_s(self, source: PeerId, target: PeerId, priority: Priority) -> float | None: ...

    def is_held_up(self, source: PeerId, target: PeerId) -> bool: ...

    async def wait_through(self, source: PeerId, target: PeerId) -> None: ...

    def peer(self, peer: PeerId) -> Station | None: ...

    def networks(self) -> Iterable[Station]: ...

    def network_of(self, peer: PeerId) -> Station: ...

    def arrives(self, source: PeerId, target: PeerId, data: bytes) -> bytes: ...

    def start(self, fn: Callable[..., Awaitable[object]], *args: object) -> None: ...

    def connect(self, a: PeerId, b: PeerId, relay: PeerId | None = None) -> None: ...

    def disconnect(self, a: PeerId, b: PeerId) -> None: ...
