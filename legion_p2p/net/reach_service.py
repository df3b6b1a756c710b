"""Asking others how this peer is seen and whether they can dial it, and doing the same for them.

Decisions: core/reach_finder.py for this peer, core/dial_backs.py for others. A dial back is a connection of its own, which ends
when both sides have shown who they are; this side notices it at its listener, so that nobody can claim a dial that never came.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.dial_backs import MAX_PORTS, DialBacks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.core.reach_finder import OBSERVE_S, OwnReachFinder, ReachVerdict
from legion_p2p.errors import DecodeError, LegionError
from legion_p2p.net.dialer import Dialer, without_circuits
from legion_p2p.net.ends import End, local_end, multiaddr_of, remote_end
from legion_p2p.net.limits import MAX_KNOWN_PEERS
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.networks import is_elsewhere, own_hosts, own_networks
from legion_p2p.net.patches import replace_attributes
from legion_p2p.net.transport import Transport

SERVICE = "reach"
TICK_S = 1.0
LOOK_S = 5.0  # between two looks at this machine's addresses
ANSWER_S = 12.0  # for an answer: the other side dials, which takes up to DIAL_BACK_S
DIAL_BACK_S = 4.0  # one port; a SYN that was lost is repeated after 1 and 3 s
MAX_DIALING_BACK = 8  # attempts in flight for others
MAX_OBSERVING = 4  # peers asked how this one is seen, each every OBSERVE_S
MAX_ENDS = 4  # connections of one peer that are told

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Host = Annotated[str, msgspec.Meta(max_length=64)]

log = logging.getLogger("legion_p2p.net")


class ReachQuestion(msgspec.Struct, frozen=True, array_like=True):
    """Where do you see me come from; and at which of these ports there can you dial me?"""

    ports: Annotated[tuple[_Port, ...], msgspec.Meta(max_length=MAX_PORTS)] = ()


class ReachAnswer(msgspec.Struct, frozen=True, array_like=True):
    ends: Annotated[tuple[tuple[_Host, _Port], ...], msgspec.Meta(max_length=MAX_ENDS)]
    dialed: Annotated[tuple[tuple[_Port, bool], ...], msgspec.Meta(max_length=MAX_PORTS)] = ()
    refused: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Why no port was dialed."""


@dataclass(frozen=True)
class Doors:
    """The ports at which this peer may be open to others."""

    listening: Callable[[], frozenset[int]]
    """Those that it listens on."""
    forwarded: Callable[[], tuple[int, ...]]
    """Those that a router forwards to it, as far as anybody says."""


class OwnReachService:
    """Keeps finding out how others reach this peer."""

    def __init__(self, swarm: Swarm, transport: Transport, dialer: Dialer, messenger: Libp2pMessenger, doors: Doors) -> None:
        self.finder = OwnReachFinder(listens=bool(doors.listening()))
        self.verdict = ReachVerdict()
        self.changed: Observers[ReachVerdict] = Observers()
        """Told of each other verdict."""
        self.moved: Observers[None] = Observers()
        """Told when this peer's addresses, here or outside, have changed."""
        self.is_punching: Callable[[str], bool] = lambda host: False
        """Whether a connection from there was agreed on, so that it proves nothing."""
        self._swarm = swarm
        self._transport = transport
        self._dialer = dialer
        self._messenger = messenger
        self._doors = doors
        self._dial_backs = DialBacks()
        self._dialing = trio.CapacityLimiter(MAX_DIALING_BACK)
        self._look_at = float("-inf")
        self._asked_at: dict[PeerId, float] = {}
        self._arrivals: BoundedMap[PeerId, float] = BoundedMap(MAX_KNOWN_PEERS)
        messenger.serve_internally(SERVICE, self._answer)
        self._notice_arrivals()

    async def keep(self) -> None:
        """Find out, and notice changes, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                if now >= self._look_at:
                    self._look_at = now + LOOK_S
                    if self.finder.moved(frozenset(own_hosts())):
                        self._asked_at.clear()
                        self.moved.tell(None)
                candidates = self._elsewhere()
                asked = self.finder.to_ask(candidates, now)
                self._asked_at = {peer: at for peer, at in self._asked_at.items() if peer in candidates}
                due = [peer for peer in candidates if now - self._asked_at.get(peer, float("-inf")) >= OBSERVE_S]
                n_observing = len(self._asked_at)
                for peer in due:
                    if peer in self._asked_at or n_observing < MAX_OBSERVING:
                        n_observing += peer not in self._asked_at
                        self._asked_at[peer] = now
                        nursery.start_soon(self._ask, peer, ())  # dialing back takes seconds, this none
                for peer in asked:
                    nursery.start_soon(self._ask, peer, self._ports())
                self._conclude()
                await trio.sleep(TICK_S)

    def _conclude(self) -> None:
        verdict = self.finder.verdict(trio.current_time())
        if verdict != self.verdict:
            self.verdict = verdict
            self.changed.tell(verdict)

    def _ports(self) -> tuple[int, ...]:
        outside = self.finder.outside(trio.current_time())
        ports = (*self._doors.forwarded(), *sorted(self._doors.listening()), *(() if outside is None else (outside[1],)))
        return tuple(dict.fromkeys(ports))[:MAX_PORTS]

    def _elsewhere(self) -> dict[PeerId, str]:
        """Peers of other networks that there is a direct connection to, and their hosts."""
        networks = own_networks()
        found: dict[PeerId, str] = {}
        for peer, connections in self._dialer.table().items():
            for connection in without_circuits(connections):
                end = remote_end(connection.muxed_conn)
                if end is not None and is_elsewhere(end[0], networks):
                    found[peer] = end[0]
        return found

    async def _ask(self, peer: PeerId, ports: tuple[int, ...]) -> None:
        asked_at = trio.current_time()
        with trio.move_on_after(ANSWER_S):
            try:
                reply = await self._messenger.call(peer, SERVICE, msgspec.msgpack.encode(ReachQuestion(ports)))
                self._take(peer, msgspec.msgpack.decode(reply, type=ReachAnswer), asked_at)
            except LegionError as failed:
                log.debug("%s did not say how it sees this peer: %s", peer, failed)
            except (msgspec.DecodeError, ValueError) as bad:
                self._messenger.report(peer, f"not an answer about reach: {bad}")

    def _take(self, peer: PeerId, answer: ReachAnswer, asked_at: float) -> None:
        now = trio.current_time()
        connections = self._dialer.direct(peer)
        if len(connections) == 1 and len(answer.ends) == 1:  # of several, nobody knows which is which
            here = local_end(connections[0].muxed_conn)
            host, port = answer.ends[0]
            if here is not None and self.finder.seen(peer, host, port, here[1] in self._doors.listening(), now):
                log.debug("%s sees this peer at %s now", peer, host)
                self.moved.tell(None)
        there = self._elsewhere().get(peer)
        if there is not None and answer.dialed:
            reached = [port for port, ok in answer.dialed if ok]
            if reached and answer.ends and self._arrivals.get(peer, float("-inf")) >= asked_at:
                address = multiaddr_of((answer.ends[0][0], reached[0]))
                self.finder.arrived(there, address, now, was_dialed=self._transport.has_dialed(there))
            else:
                self.finder.failed(there, now)
        self._conclude()

    def _notice_arrivals(self) -> None:
        """Remember which peers have shown at this peer's listener who they are, and count those of other networks."""
        upgrade = self._swarm.upgrader.upgrade_security

        async def upgrade_security(raw: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
            secured = await upgrade(raw, is_initiator, peer_id)
            end = None if is_initiator or raw.is_initiator else raw.get_remote_address()
            is_proof = end is not None and not self.is_punching(end[0]) and end not in self._transport.dialed
            if end is not None and is_proof and is_elsewhere(end[0], own_networks()):
                self._arrivals[PeerId(str(secured.get_remote_peer()))] = trio.current_time()
                was_dialed = self._transport.has_dialed(end[0])
                self.finder.arrived(end[0], "", trio.current_time(), was_dialed=was_dialed)
            return secured

        replace_attributes(self._swarm.upgrader, upgrade_security=upgrade_security)

    # for others

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        try:
            question = msgspec.msgpack.decode(body, type=ReachQuestion)
        except (msgspec.DecodeError, ValueError) as bad:
            raise DecodeError(f"not a question about reach: {bad}") from bad
        ends = [end for c in self._dialer.direct(peer) if (end := remote_end(c.muxed_conn)) is not None][:MAX_ENDS]
        if not question.ports or not ends:
            return msgspec.msgpack.encode(ReachAnswer(tuple(ends)))
        host = ends[0][0]
        if is_elsewhere(host, own_networks()):
            refused = self._dial_backs.ask(peer, host, len(question.ports), trio.current_time())
        else:
            refused = "it is in the same network, where a dial proves nothing"
        dialed: list[tuple[int, bool]] = []
        if not refused:

            async def dial(port: int) -> None:
                dialed.append((port, await self._dial_back(peer, (host, port))))

            async with trio.open_nursery() as nursery:
                for port in dict.fromkeys(question.ports):
                    nursery.start_soon(dial, port)
        return msgspec.msgpack.encode(ReachAnswer(tuple(ends), tuple(dialed), refused))

    async def _dial_back(self, peer: PeerId, end: End) -> bool:
        """Whether `peer` answers there, and shows that it is that peer."""
        async with self._dialing:
            with trio.move_on_after(DIAL_BACK_S):
                raw: IRawConnection | None = None
                try:
                    raw = await self._transport.dial(Multiaddr(multiaddr_of(end)))
                    await self._swarm.upgrader.upgrade_security(raw, True, ID.from_base58(peer))
                    return True
                except Exception as failed:  # of many kinds: the socket's, libp2p's, the other side's
                    log.debug("dialing %s back at %s: %r", peer, end, failed)
                finally:
                    if raw is not None:
                        await raw.close()
        return False
