"""One simulated peer's end of its own requests, with the limits and errors of the real one."""

from functools import partial

import trio

from legion_p2p.concurrency.semaphore import PeerSemaphore
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.slots import SlotLimits
from legion_p2p.errors import UnreachableError, UsageError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.limits import DIAL_TIMEOUT_S, MAX_BODY_BYTES, MAX_REQUESTS_OUT
from legion_p2p.net.peer_score import REFUSED, Refusals
from legion_p2p.sim.fabric import Fabric, Station
from legion_p2p.sim.request import BREAK_AFTER_S, FRAME_BYTES, RequestUnderWay


class SimClient:
    """Sends requests, and takes their replies."""

    def __init__(self, world: Fabric, network: Station, book: AddressBook, refusals: Refusals) -> None:
        self._world = world
        self._network = network
        self._book = book
        self._refusals = refusals
        self._slots = {priority: PeerSemaphore(SlotLimits(max_per_peer=MAX_REQUESTS_OUT[priority.lane])) for priority in Priority}
        self._rtt_s: dict[PeerId, float] = {}

    def rtt_s(self, peer: PeerId) -> float | None:
        """The last round trip to it."""
        return self._rtt_s.get(peer)

    async def call(self, peer: PeerId, service: str, body: bytes, priority: Priority = Priority.CONTROL) -> bytes:
        """`request` of services.ports.Messenger, to any service of the other side."""
        limit = MAX_BODY_BYTES[priority.lane]
        if len(body) > limit:
            raise UsageError(f"request of {len(body)} bytes on the {priority.lane} lane, limit is {limit}")
        async with self._slots[priority].slot((peer,)):
            self._check_alive(peer)
            await self._connect(peer)
            exchange = RequestUnderWay(peer, service, body, priority)
            self._send(exchange)
            self._network.asking.add(exchange)
            try:
                await exchange.done.wait()
            finally:
                self._network.asking.discard(exchange)
            self._check_alive(peer)
            if exchange.error is not None:
                raise exchange.error
            return exchange.reply

    async def _connect(self, peer: PeerId) -> None:
        me = self._network.peer_id
        if peer == me:
            raise UnreachableError(peer, "that is this peer itself")
        if self._refusals.is_refused(peer):
            raise UnreachableError(peer, REFUSED)
        if peer in self._network.connections:
            return
        known = self._book.of(peer)
        if not known:
            raise UnreachableError(peer, "no address of it is known, and it is not connected")
        with trio.move_on_after(DIAL_TIMEOUT_S):
            await self._dial(peer, known)
            return
        raise UnreachableError(peer, f"no answer in {DIAL_TIMEOUT_S:.0f} s")

    async def _dial(self, peer: PeerId, known: tuple[str, ...]) -> None:
        world, me = self._world, self._network.peer_id
        await world.wait_through(me, me)
        await trio.sleep(2 * world.delay(me, peer))
        other = world.peer(peer)
        relay: PeerId | None = None
        while True:
            is_direct = world.can_dial(me, peer)
            relay = None if is_direct else world.usable_relay(me, peer)
            if relay is not None or (is_direct and not world.is_blocked(me, peer)):
                if other is None:
                    raise UnreachableError(peer, "connection refused")
                if not other.frozen:
                    break
            await world.changed.wait()
            other = world.peer(peer)
        if other.address not in known:
            raise UnreachableError(peer, "connection refused")
        if other.refusals.is_refused(me):
            raise UnreachableError(peer, "the connection was closed at once")
        world.connect(me, peer, relay)

    # What was sent is carried out even if the asker gives up. Where only the delay holds bytes up, no task waits for them on the
    # way: that would cost as much as what is done with them.

    def _send(self, exchange: RequestUnderWay) -> None:
        world, me, other = self._world, self._network.peer_id, self._world.network_of(exchange.peer)
        other.asked[exchange] = me
        if not other.alive:
            world.start(reset, world, exchange, me, other)
        self._network.n_sent += len(exchange.body) + FRAME_BYTES
        flight_s = world.flight_s(me, exchange.peer, exchange.priority)
        if flight_s is None:
            world.start(self._exchange, exchange, other, False)
        else:
            world.timers.at(exchange.begun_at + flight_s, partial(world.start, self._exchange, exchange, other, True))

    async def _exchange(self, exchange: RequestUnderWay, other: Station, has_travelled: bool) -> None:
        """The request from its way to the other side on; where the reply `is_answered`, `_arrive` does the rest."""
        world, peer, me = self._world, exchange.peer, self._network.peer_id
        outcome = exchange.outcome
        breaks = world.loss > 0 and world.random.random() < world.loss
        late = breaks and world.random.random() < 0.5
        try:
            with exchange.scope:
                if has_travelled:
                    await world.wait_through(me, peer)
                else:
                    await world.travel(me, peer, len(exchange.body), exchange.priority)
                if breaks and not late:
                    raise UnreachableError(peer, "the connection broke")
                arrived = world.arrives(me, peer, exchange.body)
                other.n_received += len(arrived) + FRAME_BYTES
                handled_at = trio.current_time()
                exchange.is_handled = True
                await other.messenger.server.handle(outcome, me, exchange.service, arrived, exchange.priority.lane)
                exchange.is_handled = False
                other.n_sent += len(outcome.reply) + FRAME_BYTES
                exchange.handled_s = trio.current_time() - handled_at
                if breaks:
                    raise UnreachableError(peer, "the connection broke")
                priority = outcome.priority if exchange.priority else exchange.priority
                flight_s = world.flight_s(peer, me, priority)
                if flight_s is not None:
                    exchange.is_answered = True
                    world.timers.at(trio.current_time() + flight_s, partial(self._arrive, exchange, other))
                else:
                    await world.travel(peer, me, len(outcome.reply), priority)
                    self._take(exchange)
        except UnreachableError as broken:
            self._break(exchange, broken)
        finally:
            if not exchange.is_answered:
                self._end(exchange, other)

    def _arrive(self, exchange: RequestUnderWay, other: Station) -> None:
        """The reply is here, unless something holds it up."""
        if exchange.error is None and self._world.is_held_up(exchange.peer, self._network.peer_id):
            exchange.scope = trio.CancelScope()
            self._world.start(self._wait_for_reply, exchange, other)
            return
        if exchange.error is None:
            self._take(exchange)
        self._end(exchange, other)

    async def _wait_for_reply(self, exchange: RequestUnderWay, other: Station) -> None:
        try:
            with exchange.scope:
                await self._world.wait_through(exchange.peer, self._network.peer_id)
                self._take(exchange)
        except UnreachableError as broken:
            self._break(exchange, broken)
        finally:
            self._end(exchange, other)

    def _take(self, exchange: RequestUnderWay) -> None:
        peer, outcome = exchange.peer, exchange.outcome
        self._network.n_received += len(outcome.reply) + FRAME_BYTES
        exchange.reply, exchange.error = self._world.arrives(peer, self._network.peer_id, outcome.reply), outcome.error
        if exchange.priority is Priority.CONTROL:
            self._rtt_s[peer] = max(trio.current_time() - exchange.begun_at - exchange.handled_s, 1e-6)

    def _break(self, exchange: RequestUnderWay, broken: UnreachableError) -> None:
        exchange.error = UnreachableError(exchange.peer, "the connection broke")
        exchange.error.__cause__ = broken
        self._world.disconnect(self._network.peer_id, exchange.peer)

    def _end(self, exchange: RequestUnderWay, other: Station) -> None:
        exchange.outcome.over()
        del other.asked[exchange]
        if not exchange.is_stopped:
            exchange.done.set()

    def _check_alive(self, peer: PeerId) -> None:
        if not self._network.alive:
            raise UnreachableError(peer, "this peer has left the network")


async def reset(world: Fabric, exchange: RequestUnderWay, me: PeerId, other: Station) -> None:
    """The other side's kernel resets the connection: known one delay later, unless the reset itself cannot get through."""
    await trio.sleep(world.delay(other.peer_id, me))
    with trio.move_on_after(BREAK_AFTER_S):
        while world.is_blocked(me, other.peer_id) and not exchange.done.is_set():
            await world.changed.wait()
    if not exchange.done.is_set():
        exchange.error = UnreachableError(other.peer_id, "the connection broke")
        world.disconnect(me, other.peer_id)
        exchange.scope.cancel()
        if exchange.is_stopped:
            exchange.done.set()
