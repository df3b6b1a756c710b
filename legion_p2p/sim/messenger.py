"""Requests and replies in a simulated world: one peer's end of them, with the limits and errors of the real one."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.errors import LegionError, RefusedError, UnreachableError, UsageError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.limits import DIAL_TIMEOUT_S, MAX_BODY_BYTES, MAX_REQUESTS_IN, MAX_REQUESTS_OUT
from legion_p2p.net.peer_score import PeerScore
from legion_p2p.net.wire import VERSION, Envelope, Kind, encode
from legion_p2p.services.ports import Bandwidth, Gift, Handler, Lane, Traffic

if TYPE_CHECKING:
    from legion_p2p.sim.network import SimNetwork, World

FRAME_BYTES = len(encode(Envelope(VERSION, 1000, Kind.REQUEST), 0))  # of head and envelope, in the middle of a run
BREAK_AFTER_S = 30.0  # of packets that vanish, until TCP gives the connection up


class SimMessenger:
    """See services.ports.Messenger."""

    def __init__(self, world: "World", network: "SimNetwork", address: str) -> None:
        self._world = world
        self._network = network
        self._address = address
        self._services: dict[str, Handler] = {}
        self._book = AddressBook()
        self._standing = PeerScore()
        self._turns: dict[tuple[PeerId, Lane, bool], trio.Semaphore] = {}
        self._n_handling: Counter[PeerId] = Counter()
        self._rtt_s: dict[PeerId, float] = {}
        self._sent = 0
        self._received = 0
        self.links: set[PeerId] = set()
        self.peer_id = network.identity.peer_id

    def serve(self, handler: Handler) -> None:
        self._services[""] = handler

    def serve_internally(self, service: str, handler: Handler) -> None:
        """Answer requests of another part of the network layer."""
        self._services[service] = handler

    async def request(self, peer: PeerId, body: bytes, *, lane: Lane = Lane.CONTROL, rank: int = 0) -> bytes:
        return await self.call(peer, "", body, lane, rank)

    async def call(self, peer: PeerId, service: str, body: bytes, lane: Lane = Lane.CONTROL, rank: int = 0) -> bytes:
        """`request`, to any service."""
        if len(body) > MAX_BODY_BYTES[lane.value]:
            raise UsageError(f"request of {len(body)} bytes on the {lane.value} lane, limit is {MAX_BODY_BYTES[lane.value]}")
        slots = self._turns.setdefault((peer, lane, rank > 0), trio.Semaphore(MAX_REQUESTS_OUT[lane.value]))
        async with slots:
            self._check_alive(peer)
            await self._connect(peer)
            exchange = Exchange()
            # in a task of the world: what was sent is carried out even if the asker gives up
            self._world.start(self._exchange, exchange, peer, service, body, lane, rank)
            with self._network.until_death():
                await exchange.done.wait()
            self._check_alive(peer)
            if exchange.error is not None:
                raise exchange.error
            return exchange.reply

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._book.add(peer, addresses)

    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self.links) if self._network.alive else frozenset()

    def rtt_s(self, peer: PeerId) -> float | None:
        return self._rtt_s.get(peer)

    def bandwidth(self) -> Bandwidth:
        up_bps, down_bps = self._world.limits_bps(self.peer_id)
        return self._world.bandwidths.get(self.peer_id, Bandwidth(upload_limit_bps=up_bps, download_limit_bps=down_bps))

    def traffic(self) -> Traffic:
        return Traffic(sent_bytes=self._sent, received_bytes=self._received)

    def report(self, peer: PeerId, offence: str) -> None:
        if self._standing.offend(peer, 1.0, trio.current_time()):
            self._world.disconnect(self.peer_id, peer)

    def is_refused(self, peer: PeerId) -> bool:
        """Whether `peer` is kept out for its offences."""
        return self._standing.is_refused(peer, trio.current_time())

    async def _connect(self, peer: PeerId) -> None:
        if peer == self.peer_id:
            raise UnreachableError(peer, "that is this peer itself")
        if self.is_refused(peer):
            raise UnreachableError(peer, "it is refused here for a while, for its offences")
        if peer in self.links:
            return
        world, me = self._world, self.peer_id
        known = self._book.of(peer)
        if not known:
            raise UnreachableError(peer, "no address of it is known, and it is not connected")
        with trio.move_on_after(DIAL_TIMEOUT_S):
            await world._wait_through(me, me)
            await trio.sleep(2 * world.delay(me, peer))
            other = world.peer(peer)
            while other is None or world.is_blocked(me, peer) or other.frozen:
                if other is None and not world.is_blocked(me, peer):
                    raise UnreachableError(peer, "connection refused")
                await world.wait_change()
                other = world.peer(peer)
            if other.messenger._address not in known:
                raise UnreachableError(peer, "connection refused")
            if other.messenger.is_refused(me):
                raise UnreachableError(peer, "the connection was closed at once")
            world.connect(me, peer)
            return
        raise UnreachableError(peer, f"no answer in {DIAL_TIMEOUT_S:.0f} s")

    async def _exchange(self, exchange: "Exchange", peer: PeerId, service: str, body: bytes, lane: Lane, rank: int) -> None:
        world, me = self._world, self.peer_id
        other = world._peers[peer]
        outcome = Exchange()
        breaks = world.random.random() < world.loss
        late = world.random.random() < 0.5
        begun_at = trio.current_time()
        other.asked[exchange] = me
        if not other.alive:
            world.start(reset, world, exchange, me, other)
        try:
            with exchange.scope:
                self._sent += len(body) + FRAME_BYTES
                await world.travel(me, peer, len(body), lane, rank)
                if breaks and not late:
                    raise UnreachableError(peer, "the connection broke")
                body = world.arrives(me, peer, body)
                handled_at = trio.current_time()
                await other.messenger._handle(outcome, me, service, body, lane)
                busy_s = trio.current_time() - handled_at
                if breaks:
                    raise UnreachableError(peer, "the connection broke")
                await world.travel(peer, me, len(outcome.reply), lane, outcome.rank)
                self._received += len(outcome.reply) + FRAME_BYTES
                exchange.reply, exchange.error = world.arrives(peer, me, outcome.reply), outcome.error
                if lane.value == "control":
                    self._rtt_s[peer] = max(trio.current_time() - begun_at - busy_s, 1e-6)
        except UnreachableError as broken:
            exchange.error = UnreachableError(peer, "the connection broke")
            exchange.error.__cause__ = broken
            world.disconnect(me, peer)
        finally:
            outcome.over()
            del other.asked[exchange]
            exchange.done.set()

    async def _handle(self, outcome: "Exchange", asker: PeerId, service: str, body: bytes, lane: Lane) -> None:
        """What a request leads to here: `outcome` has the reply, or the error that the asker gets."""
        self._received += len(body) + FRAME_BYTES
        handler = self._services.get(service)
        if handler is None:
            outcome.error = RefusedError(self.peer_id, "NotServingError", "this peer does not answer such requests yet")
            return
        if self._n_handling[asker] >= MAX_REQUESTS_IN:
            outcome.error = RefusedError(self.peer_id, "BusyError", f"more than {MAX_REQUESTS_IN} requests at once")
            return
        self._n_handling[asker] += 1
        try:
            with self._network.until_death():
                await self._run_handler(outcome, handler, asker, body, lane)
        finally:
            self._n_handling[asker] -= 1
        if not self._network.alive:
            await trio.sleep_forever()  # the asker learns of it by the reset
        self._sent += len(outcome.reply) + FRAME_BYTES

    async def _run_handler(self, outcome: "Exchange", handler: Handler, asker: PeerId, body: bytes, lane: Lane) -> None:
        try:
            reply = await handler(asker, body)
            if isinstance(reply, Gift):
                outcome.give(reply)
                reply = reply.body
            if len(reply) > MAX_BODY_BYTES[lane.value]:
                limit = MAX_BODY_BYTES[lane.value]
                raise UsageError(f"reply of {len(reply)} bytes on the {lane.value} lane, limit is {limit}")
            outcome.reply = bytes(reply)
        except LegionError as refused:
            outcome.error = RefusedError(self.peer_id, type(refused).__name__, str(refused))
        except Exception:  # as over a real network: a handler that fails ends nobody
            reason = "the other side failed to handle it; its log tells why"
            outcome.error = RefusedError(self.peer_id, "InternalError", reason)

    def _check_alive(self, peer: PeerId) -> None:
        if not self._network.alive:
            raise UnreachableError(peer, "this peer has left the network")


class Exchange:
    """A request under way, and what came of it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self.reply = b""
        self.error: Exception | None = None
        self.rank = 0
        self.sent: Callable[[], None] | None = None
        """Of a reply that is a gift: to be called when it is on its way."""
        self._is_over = False

    def give(self, gift: Gift) -> None:
        self.sent, self.rank = gift.sent, gift.rank
        if self._is_over:
            gift.sent()

    def over(self) -> None:
        self._is_over = True
        if self.sent is not None:
            self.sent()


async def reset(world: "World", exchange: Exchange, me: PeerId, other: "SimNetwork") -> None:
    """The other side's kernel resets the connection: known one delay later, unless the reset itself cannot get through."""
    await trio.sleep(world.delay(other.peer_id, me))
    with trio.move_on_after(BREAK_AFTER_S):
        while world.is_blocked(me, other.peer_id) and not exchange.done.is_set():
            await world.wait_change()
    if not exchange.done.is_set():
        exchange.error = UnreachableError(other.peer_id, "the connection broke")
        world.disconnect(me, other.peer_id)
        exchange.scope.cancel()
