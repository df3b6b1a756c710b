"""From a circuit to a direct connection: the method of libp2p's DCUtR, over the messenger.

```
asker                          relay                          answerer
  offer: where others see me  ------------------------------>
  <------------------------------  where others see me
  go ----------------------------------------------------->  dials
  dials, half a round trip later
```
Both dial from the ports that they listen on, at the same moment, so that the packets of each open its own router for the other's.
The two dials become one TCP connection, or one side's listener takes the other's: either way the asker then waits for the
answerer to speak first. (py-libp2p's DCUtR service closes circuits that are in use, and gives roles to dials, not to peers.)

Two peers with the same address outside are behind one router, and dial each other's addresses inside as well. The peer with the
smaller id asks. Meanwhile, and after a failure, the circuit carries on.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Annotated

import msgspec
import trio
from libp2p.abc import INetConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.punches import Punches
from legion_p2p.errors import DecodeError, LegionError
from legion_p2p.net.dialer import Dialer, without_circuits
from legion_p2p.net.ends import End, multiaddr_of
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.reach_service import OwnReachService

SERVICE = "punch"
TICK_S = 0.5
ANSWER_S = 10.0  # for an answer, through a relay
PUNCH_S = 4.0  # of dialing, on both sides; the second SYN goes after 1 s, the third after 3 s
MAX_TRIES = 6  # of one address in one attempt
TRY_PAUSE_S = 0.25  # a router may refuse the other side's first packet, which ends a dial at once
MAX_NEAR = 4  # addresses inside that are told
MAX_OFFERS = 64  # of others, on which they may follow up
OFFER_S = 15.0
CIRCUIT_REST_S = 30.0  # a circuit beside a direct connection ends after so long, if nothing uses it any longer

_Host = Annotated[str, msgspec.Meta(max_length=64)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]

log = logging.getLogger("legion_p2p.net")


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a peer may be met."""

    outside: tuple[_Host, _Port] | None = None
    near: Annotated[tuple[tuple[_Host, _Port], ...], msgspec.Meta(max_length=MAX_NEAR)] = ()


class _Offer(msgspec.Struct, frozen=True, array_like=True):
    place: _Place
    go: bool = False


class Punching:
    """Tries for direct connections to the peers that are reached through relays."""

    def __init__(
        self, swarm: Swarm, dialer: Dialer, messenger: Libp2pMessenger, reach: OwnReachService,
        near: Callable[[], tuple[End, ...]], source: Callable[[str], End | None], nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        """`near`: where this peer listens inside; `source`: the port of ours to dial from, by the host of the other side."""
        self._swarm = swarm
        self._dialer = dialer
        self._messenger = messenger
        self._reach = reach
        self._near = near
        self._source = source
        self._nursery = nursery
        self._punches = Punches()
        self._offers: BoundedMap[PeerId, tuple[_Place, float]] = BoundedMap(MAX_OFFERS)
        self._expected: dict[str, list[PeerId]] = {}
        self._direct_since: dict[PeerId, float] = {}
        messenger.serve_internally(SERVICE, self._answer)
        reach.moved.add(lambda _: self._punches.forget())
        reach.is_punching = self._expected.__contains__

    def first_speaker(self, host: str) -> PeerId | None:
        """The peer that a connection from `host` is of, if this side has agreed to speak first on it; else None."""
        peers = self._expected.get(host, [])
        return next((peer for peer in peers if not self._asks(peer)), None)

    async def keep(self) -> None:
        """Try again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                table = self._dialer.table()
                relayed = [peer for peer, connections in table.items() if not without_circuits(connections)]
                if relayed and self._reach.finder.outside_host(now) is not None:
                    while (peer := self._punches.poll(filter(self._asks, relayed), now)) is not None:
                        nursery.start_soon(self._try, peer)
                self._close_idle_circuits(table, now)
                await trio.sleep(TICK_S)

    def _asks(self, peer: PeerId) -> bool:
        return self._messenger.peer_id < peer

    def _place(self) -> _Place:
        return _Place(self._reach.finder.outside(trio.current_time()), self._near()[:MAX_NEAR])

    async def _try(self, peer: PeerId) -> None:
        ok = False
        try:
            with trio.move_on_after(2 * ANSWER_S + PUNCH_S):
                ok = await self._punch(peer)
        except LegionError as failed:
            log.debug("no punching with %s: %s", peer, failed)
        except (msgspec.DecodeError, ValueError) as bad:
            self._messenger.report(peer, f"not an answer about punching: {bad}")
        finally:
            if ok:
                self._punches.succeeded(peer)
            else:
                self._punches.failed(peer, trio.current_time())

    async def _punch(self, peer: PeerId) -> bool:
        mine = self._place()
        asked_at = trio.current_time()
        reply = await self._messenger.call(peer, SERVICE, msgspec.msgpack.encode(_Offer(mine)))
        rtt_s = trio.current_time() - asked_at
        theirs = msgspec.msgpack.decode(reply, type=_Place)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._go, peer, mine)
            await trio.sleep(rtt_s / 2)
            await self._meet(peer, mine, theirs)
            nursery.cancel_scope.cancel()
        return bool(self._dialer.direct(peer))

    async def _go(self, peer: PeerId, mine: _Place) -> None:
        try:
            await self._messenger.call(peer, SERVICE, msgspec.msgpack.encode(_Offer(mine, go=True)))
        except LegionError as failed:
            log.debug("%s does not punch: %s", peer, failed)

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        try:
            offer = msgspec.msgpack.decode(body, type=_Offer)
        except (msgspec.DecodeError, ValueError) as bad:
            raise DecodeError(f"not an offer to punch: {bad}") from bad
        now = trio.current_time()
        mine = self._place()
        if not offer.go:
            self._offers[peer] = (offer.place, now)
        else:
            place, offered_at = self._offers.pop(peer, (None, 0.0))
            is_due = place is not None and now - offered_at < OFFER_S and not self._asks(peer) and not self._dialer.direct(peer)
            if place is not None and is_due and self._punches.agrees(peer, now):
                self._nursery.start_soon(self._meet, peer, mine, place)
        return msgspec.msgpack.encode(mine)

    async def _meet(self, peer: PeerId, mine: _Place, theirs: _Place) -> None:
        """Dial as agreed; returns when there is a direct connection, or the time is over."""
        same_home = mine.outside is not None and theirs.outside is not None and mine.outside[0] == theirs.outside[0]
        if not same_home:
            self._dialer.punching.add(peer)
        with trio.move_on_after(PUNCH_S), ExitStack() as afterwards:
            async with trio.open_nursery() as nursery:
                if theirs.outside is not None and ip_address(theirs.outside[0]).is_global:
                    afterwards.enter_context(self._expecting(theirs.outside[0], peer))
                    nursery.start_soon(self._repeat, self._dial_hole, peer, theirs.outside, nursery.cancel_scope)
                if same_home:
                    for end in theirs.near:
                        if ip_address(end[0]).is_private and not ip_address(end[0]).is_loopback:
                            nursery.start_soon(self._repeat, self._dial_near, peer, end, nursery.cancel_scope)
        made = self._dialer.direct(peer)
        if made and not same_home:
            self._dialer.punched.update(made)
            self._reach.finder.punched()
        self._dialer.punching.discard(peer)
        log.debug("punching with %s: %s", peer, "direct now" if made else "the circuit goes on")

    @contextmanager
    def _expecting(self, host: str, peer: PeerId) -> Iterator[None]:
        self._expected.setdefault(host, []).append(peer)
        try:
            yield
        finally:
            self._expected[host].remove(peer)
            if not self._expected[host]:
                del self._expected[host]

    async def _repeat(
        self, dial: Callable[[PeerId, End], Awaitable[None]], peer: PeerId, end: End, others: trio.CancelScope
    ) -> None:
        for _ in range(MAX_TRIES):
            await dial(peer, end)
            if self._dialer.direct(peer):
                others.cancel()
                return
            await trio.sleep(TRY_PAUSE_S)

    async def _dial_hole(self, peer: PeerId, end: End) -> None:
        where, who, source = Multiaddr(multiaddr_of(end)), ID.from_base58(peer), self._source(end[0])
        try:
            if self._asks(peer):
                await self._swarm.dial_addr_as_responder(where, who, source)
            else:
                await self._swarm.dial_addr(where, who, source)
        except Exception as failed:  # libp2p raises many kinds
            log.debug("punching to %s at %s: %r", peer, where, failed)

    async def _dial_near(self, peer: PeerId, end: End) -> None:
        if not self._asks(peer):
            await trio.sleep(PUNCH_S / 3)  # one dial is enough where it works
        if not self._dialer.direct(peer):
            await self._dialer.try_address(peer, multiaddr_of(end))

    def _close_idle_circuits(self, table: Mapping[PeerId, list[INetConn]], now: float) -> None:
        beside: dict[PeerId, float] = {}
        for peer, connections in table.items():
            direct = without_circuits(connections)
            circuits = [conn for conn in connections if conn not in direct]
            if not direct or not circuits:
                continue
            since = beside[peer] = self._direct_since.get(peer, now)
            if not self._messenger.prefer_direct(peer, circuits) and now - since > CIRCUIT_REST_S:
                for circuit in circuits:
                    self._nursery.start_soon(circuit.close)
        self._direct_since = beside
