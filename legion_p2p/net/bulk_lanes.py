"""Bulk lanes: a TCP connection with TLS 1.3 for one peer's bulk requests to another, beside their libp2p connection.

The frames are those of the libp2p stream, without Noise and yamux, which are in Python. Peers agree over libp2p, so each knows
whom to expect before anything is dialed, and nobody on the path can pretend that the other side has no lanes:

    this side has dialed the other             it asks for a ticket (OpenLane), dials the same address, and shows the ticket
    the other side has dialed this one         it is asked to (InviteLane), asks for a ticket in turn, and dials

So a lane takes the way that has just been shown to work, through forwarded ports and out of NATs: it comes in at the same port as
libp2p, and a first byte tells them apart. Where neither has dialed the other directly, there is no lane.

    dialed -> ClientHello with the ticket as its server name -> both present certificates (certificates.py) -> CONFIRMED -> frames

Never happens: a frame of a connection is read before both certificates are verified; a connection without a ticket costs more
than a ClientHello; a lane is used for another peer than the one that its ticket was told to.
"""

import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

import msgspec
import trio
from libp2p.stream_muxer.yamux.yamux import Yamux

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.lanes import LaneTicket, LaneTickets
from legion_p2p.errors import DecodeError, NetworkError, UnreachableError
from legion_p2p.net.byte_streams import LinkStream, TlsByteStream, TlsStream
from legion_p2p.net.certificates import MAX_CERTIFICATE_BYTES, Certificates, TrustedPeer, strict_context
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.limits import DIAL_TIMEOUT_S, HANDSHAKE_TIMEOUT_S
from legion_p2p.net.peer_score import Refusals
from legion_p2p.net.sockets import Sockets, tune
from legion_p2p.net.transport import connect_to

SERVICE = "lane"
CONFIRMED = b"\x01"  # what the listening side says first: it has verified the other's certificate
TICKET_BYTES = 16

log = logging.getLogger("legion_p2p.net")


class OpenLane(msgspec.Struct, frozen=True, tag="open"):
    """I want to dial you. Answered with LaneOpened."""

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CERTIFICATE_BYTES)]
    answers: bool
    """The side that dials answers requests on the lane; otherwise it asks."""


class LaneOpened(msgspec.Struct, frozen=True, tag="opened"):
    """Come with this ticket."""

    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CERTIFICATE_BYTES)]
    ticket: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * TICKET_BYTES}}}$")]


class InviteLane(msgspec.Struct, frozen=True, tag="invite"):
    """Dial me for a lane on which you answer. Answered with LaneInvited."""


class LaneInvited(msgspec.Struct, frozen=True, tag="invited"):
    """I am about to."""


_questions = msgspec.msgpack.Decoder(OpenLane | InviteLane)
_opened = msgspec.msgpack.Decoder(LaneOpened)

Call = Callable[[PeerId, str, bytes], Awaitable[bytes]]
"""Asks a part of another peer's network layer. Raises: NetworkError."""


@dataclass(frozen=True)
class OpenLaneStream:
    """A lane that is ready for frames."""

    stream: TlsByteStream
    ticket: str
    """Names the lane to both sides."""


Serve = Callable[[PeerId, OpenLaneStream], Awaitable[None]]
"""Answers requests on a lane until it ends."""


@dataclass(frozen=True)
class LaneParts:
    """What lanes are made of."""

    identity: Identity
    sockets: Sockets
    max_sockets: int
    """No further lane is dialed once this many are open."""


class BulkLanes:
    """Opens lanes to other peers, and lets theirs in."""

    def __init__(
        self, parts: LaneParts, nursery: trio.Nursery, dialer: Dialer, refusals: Refusals, call: Call, serve: Serve
    ) -> None:
        self._certificates = Certificates(parts.identity)
        self._sockets = parts.sockets
        self._max_sockets = parts.max_sockets
        self._nursery = nursery
        self._dialer = dialer
        self._refusals = refusals
        self._call = call
        self._serve = serve
        self._tickets = LaneTickets()
        self._invited: dict[PeerId, _Awaited] = {}
        self._dialing: set[PeerId] = set()
        self._open: dict[PeerId, set[TlsByteStream]] = {}
        refusals.refused.add(self.close_all)

    async def open(self, peer: PeerId) -> OpenLaneStream:
        """A lane for requests of this peer. The libp2p connection is there already. Deadlines are the caller's.

        Raises: NetworkError, or an OSError; most of all, where neither of the two has dialed the other directly.
        """
        if self._dialed_address(peer) is not None:
            return await self._dial(peer, answers=False)
        awaited = self._invited[peer] = _Awaited()
        try:
            await self._call(peer, SERVICE, msgspec.msgpack.encode(InviteLane()))
            await awaited.arrived.wait()
        except BaseException:  # a caller that gives up as well: nobody else would close it
            if awaited.lane is not None:  # given up at the moment when it arrived
                self.close(peer, awaited.lane)
            raise
        finally:
            if self._invited.get(peer) is awaited:
                del self._invited[peer]
        assert awaited.lane is not None
        return awaited.lane

    def close(self, peer: PeerId, lane: OpenLaneStream) -> None:
        """It is not used any more."""
        self._close(peer, lane.stream)

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """A question of another peer's lanes. Raises: DecodeError, which is misbehaviour; NetworkError, to refuse."""
        try:
            question = _questions.decode(body)
            if isinstance(question, OpenLane):
                self._certificates.trust(peer, question.certificate)
                ticket = secrets.token_hex(TICKET_BYTES)
                self._tickets.issue(ticket, peer, question.answers, trio.current_time())
                return msgspec.msgpack.encode(LaneOpened(self._certificates.own, ticket))
        except (msgspec.DecodeError, RecursionError, DecodeError) as bad:
            self._refusals.report(peer, f"lane: {bad}")
            raise DecodeError(f"lane: {bad}") from bad
        if self._dialed_address(peer) is None or peer in self._dialing:
            raise NetworkError("no lane: this side has not dialed the other one directly, or is dialing now")
        self._dialing.add(peer)
        self._nursery.start_soon(self._dial_to_answer, peer)
        return msgspec.msgpack.encode(LaneInvited())

    async def accept(self, raw: trio.SocketStream) -> None:
        """Let an inbound connection in if it has a ticket, and answer what is asked on it until it ends.

        Raises: whatever the handshake raises; the connection is closed then.
        """
        door = strict_context(ssl.PROTOCOL_TLS_SERVER)
        redeemed: list[tuple[LaneTicket, TrustedPeer, str]] = []

        def look_at_ticket(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            ticket = None if name is None or redeemed else self._tickets.redeem(name, trio.current_time())
            trusted = None if ticket is None else self._certificates.trusted(ticket.peer)
            if name is None or ticket is None or trusted is None:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            redeemed.append((ticket, trusted, name))
            try:
                tls.context = trusted.server
            except OSError as failed:  # no file for the key: what is raised here would be printed, and go nowhere
                log.warning("no TLS for bulk: %s", failed)
                return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
            return None

        door.sni_callback = look_at_ticket
        stream = await self._tls(raw, door, None)
        is_handed_over = False
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                await stream.handshake()
                (ticket, trusted, name), *_ = redeemed
                if stream.certificate() != trusted.der or self._refusals.is_refused(ticket.peer):
                    raise NetworkError("a lane of a peer that presents another certificate, or is refused here")
                await stream.write(CONFIRMED)
            self._open.setdefault(ticket.peer, set()).add(stream)
            lane = OpenLaneStream(stream, name)
            awaited = self._invited.pop(ticket.peer, None) if ticket.for_own_requests else None
            if awaited is not None:
                awaited.lane = lane
                awaited.arrived.set()
                is_handed_over = True
            elif not ticket.for_own_requests:
                await self._serve(ticket.peer, lane)
        finally:
            if not is_handed_over:
                self._close(redeemed[0][0].peer if redeemed else None, stream)

    async def _dial_to_answer(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                lane = await self._dial(peer, answers=True)
        except Exception as failed:
            log.debug("lane to %s, which invited: %r", peer, failed)
            return
        finally:
            self._dialing.discard(peer)
        try:
            await self._serve(peer, lane)
        finally:
            self.close(peer, lane)

    async def _dial(self, peer: PeerId, answers: bool) -> OpenLaneStream:
        if len(self._sockets) >= self._max_sockets:
            raise NetworkError(f"no lane: {len(self._sockets)} connections are open, this process may have {self._max_sockets}")
        question = OpenLane(self._certificates.own, answers)
        reply = await self._call(peer, SERVICE, msgspec.msgpack.encode(question))
        try:
            opened = _opened.decode(reply)
            trusted = self._certificates.trust(peer, opened.certificate)
        except (msgspec.DecodeError, RecursionError, DecodeError) as bad:
            self._refusals.report(peer, f"lane: {bad}")
            raise NetworkError(f"a lane with {peer} that makes no sense: {bad}") from bad
        address = self._dialed_address(peer)
        if address is None:
            raise UnreachableError(peer, "the connection ended meanwhile")
        with trio.fail_after(DIAL_TIMEOUT_S):
            raw = await connect_to(*address, self._sockets.packet_size)
        stream = await self._tls(raw, trusted.client, opened.ticket, address[0])
        try:
            await stream.handshake()
            first = bytearray(len(CONFIRMED))
            if stream.certificate() != trusted.der or not await stream.read_into(memoryview(first)) or first != CONFIRMED:
                raise NetworkError(f"a lane that {peer} does not confirm")
        except BaseException:  # a caller that gives up as well: the socket would stay open
            stream.close_now()
            raise
        self._open.setdefault(peer, set()).add(stream)
        return OpenLaneStream(stream, opened.ticket)

    async def _tls(self, raw: trio.SocketStream, context: ssl.SSLContext, ticket: str | None, dialed: str = "") -> TlsByteStream:
        if self._sockets.are_shaped:
            return LinkStream(await self._sockets.connected(raw, dialed) if dialed else self._sockets.wrap(raw), context, ticket)
        tune(raw.socket)
        plain = socket.socket(fileno=raw.socket.detach())
        plain.setblocking(False)
        tls = context.wrap_socket(plain, server_side=ticket is None, server_hostname=ticket, do_handshake_on_connect=False)
        keep_from_children(tls)
        return TlsStream(tls, self._sockets)

    def _dialed_address(self, peer: PeerId) -> tuple[str, int] | None:
        """Where this side has dialed `peer`, if one of the connections that are open was made so. A hole lets in no other one."""
        for conn in self._dialer.direct(peer):
            muxed = cast(Yamux, conn.muxed_conn)
            address = muxed.get_remote_address() if muxed.is_initiator and conn not in self._dialer.punched else None
            if address is not None:
                return address
        return None

    def _close(self, peer: PeerId | None, stream: TlsByteStream) -> None:
        stream.close_now()
        if peer is not None:
            streams = self._open.get(peer, set())
            streams.discard(stream)
            if not streams:
                self._open.pop(peer, None)

    def drop(self) -> None:
        """Close all of them."""
        for peer in tuple(self._open):
            self.close_all(peer)

    def close_all(self, peer: PeerId) -> None:
        """It is refused from now on, or the path to it has gone."""
        for stream in self._open.pop(peer, set()):
            stream.close_now()


class _Awaited:
    """A lane that the other side was invited to dial."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.lane: OpenLaneStream | None = None
