"""Relaying for others: the hop side of circuit relay v2 (github.com/libp2p/specs, relay/circuit-v2.md).

py-libp2p's own remembers one circuit for each peer and closes the wrong one, ends transfers after a total of bytes or seconds,
and dials whomever a stranger names. This one decides by core/relay_ledger.py, and only joins peers that are connected to it.
What passes is encrypted between its ends; a relay can delay and drop it, and no more.
"""

import logging
import time
from collections.abc import Callable

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage

from legion_p2p.core.identity import PeerId
from legion_p2p.core.relay_ledger import RESERVATION_S, RelayLedger
from legion_p2p.net.circuit_stream import read_message, reset, write_message
from legion_p2p.net.ends import remote_end
from legion_p2p.net.limits import CIRCUIT_READ_S, MAX_ADDRESSES_PER_PEER

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
PIECE_BYTES = 1 << 14  # that one circuit passes at a time: short enough for the others to take turns
SWEEP_S = 1.0  # how soon a peer that is gone loses its reservation

log = logging.getLogger("legion_p2p.net")


class Relay:
    """Reservations and circuits of others, through this host."""

    def __init__(
        self, host: BasicHost, ledger: RelayLedger, direct: Callable[[PeerId], list[INetConn]], *, unproven: bool
    ) -> None:
        """`direct`: the open connections to a peer that do not lead through a relay. `unproven`: relay from the start, whether
        anybody has dialed this host or not.
        """
        self.ledger = ledger
        self.unproven = unproven
        self._host = host
        self._direct = direct
        self._enabled = False
        if unproven:
            self.enable()

    @property
    def enabled(self) -> bool:
        return self._enabled

    def enable(self) -> None:
        """Relay from now on; peers learn of it when they connect."""
        if not self._enabled:
            self._enabled = True
            self._host.set_stream_handler(HOP, self._serve)

    def disable(self) -> None:
        """Take no more: others can no longer dial this host. Circuits that are open go on."""
        if self._enabled:
            self._enabled = False
            self._host.remove_stream_handler(HOP)
            for peer in self.ledger.reserved():
                self.ledger.release(peer)

    async def forget_gone(self) -> None:
        """End the reservations of peers that are no longer connected, until cancelled."""
        while True:
            await trio.sleep(SWEEP_S)
            for peer in self.ledger.reserved():
                if not self._direct(peer):
                    self.ledger.release(peer)

    async def _serve(self, stream: INetStream) -> None:
        peer = PeerId(str(stream.muxed_conn.peer_id))
        try:
            if stream.muxed_conn.get_connection_type() is ConnectionType.RELAYED:
                await _answer(stream, Status.PERMISSION_DENIED)
                return
            message = await read_message(stream, HopMessage)
            if message.type == HopMessage.RESERVE:
                await self._reserve(stream, peer)
            elif message.type == HopMessage.CONNECT:
                await self._connect(stream, peer, message)
            else:
                await _answer(stream, Status.UNEXPECTED_MESSAGE)
        except Exception as failed:  # of strangers, in many kinds
            log.debug("relaying for %s: %r", peer, failed)
        finally:
            await reset(stream)

    async def _reserve(self, stream: INetStream, peer: PeerId) -> None:
        where = remote_end(stream.muxed_conn)
        refusal = self.ledger.reserve(peer, where[0] if where else "", trio.current_time())
        if refusal:
            log.debug("no reservation for %s: %s", peer, refusal)
            await _answer(stream, Status.RESERVATION_REFUSED)
            return
        answer = HopMessage(type=HopMessage.STATUS, status=Status.OK)
        answer.reservation.expire = int(time.time() + RESERVATION_S)
        answer.reservation.addrs.extend(a.to_bytes() for a in self._host.get_addrs()[:MAX_ADDRESSES_PER_PEER])
        await write_message(stream, answer)
        await _end(stream)

    async def _connect(self, stream: INetStream, source: PeerId, message: HopMessage) -> None:
        target = PeerId(str(ID(message.peer.id)))
        refusal = self.ledger.open(source, target, trio.current_time())
        if refusal:
            log.debug("no circuit from %s to %s: %s", source, target, refusal)
            has_place = self.ledger.holds(target, trio.current_time())
            await _answer(stream, Status.RESOURCE_LIMIT_EXCEEDED if has_place else Status.NO_RESERVATION)
            return
        far: INetStream | None = None
        try:
            if not self._direct(target):  # it has just gone: never dialed for a stranger
                self.ledger.release(target)
                await _answer(stream, Status.NO_RESERVATION)
                return
            try:
                with trio.fail_after(CIRCUIT_READ_S):
                    far = await self._host.new_stream(ID.from_base58(target), [STOP])
                await write_message(far, _stop_connect(source))
                answer = await read_message(far, StopMessage)
                accepted = answer.type == StopMessage.STATUS and answer.status == Status.OK
            except Exception as failed:
                log.debug("circuit to %s: %r", target, failed)
                accepted = False
            if far is None or not accepted:
                await _answer(stream, Status.CONNECTION_FAILED)
                return
            await write_message(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
            await self._carry(stream, source, far, target)
        finally:
            self.ledger.close(source, target)
            if far is not None:
                await reset(far)

    async def _carry(self, near: INetStream, source: PeerId, far: INetStream, target: PeerId) -> None:
        """Pass on what either side sends, until one of them ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, near, source, far, nursery.cancel_scope)
            nursery.start_soon(self._pass_on, far, target, near, nursery.cancel_scope)

    async def _pass_on(self, from_: INetStream, sender: PeerId, to: INetStream, circuit: trio.CancelScope) -> None:
        try:
            while data := await from_.read(PIECE_BYTES):
                await trio.sleep_until(self.ledger.pass_at(sender, len(data), trio.current_time()))
                await to.write(data)
        except Exception as ended:  # libp2p raises many kinds, also where a stream ends properly
            log.debug("a circuit of %s ended: %r", sender, ended)
        circuit.cancel()


def _stop_connect(source: PeerId) -> StopMessage:
    message = StopMessage(type=StopMessage.CONNECT)
    message.peer.id = ID.from_base58(source).to_bytes()
    return message


async def _answer(stream: INetStream, status: "Status.ValueType") -> None:
    await write_message(stream, HopMessage(type=HopMessage.STATUS, status=status))
    await _end(stream)


async def _end(stream: INetStream) -> None:
    """End it in order, and let the other side read the answer before it is reset."""
    await stream.close()
    with trio.move_on_after(CIRCUIT_READ_S):
        try:
            while await stream.read(1 << 10):
                await trio.lowlevel.checkpoint()
        except Exception as ended:
            log.debug("a stream about a circuit ended: %r", ended)
