"""The half of the messenger that answers: the streams that others opened, and the requests on them.

What a stranger sends wrongly costs it the stream, and raises its score; never the host.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.core.contact import Handler
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.receive_budget import TOO_LONG, ReceiveBudget, ServedRequests, too_long
from legion_p2p.core.slots import Slot, SlotLimits, Slots
from legion_p2p.errors import DecodeError, LegionError, UsageError
from legion_p2p.net.answered_once import AnsweredOnce, request_name
from legion_p2p.net.bulk_lanes import OpenLaneStream
from legion_p2p.net.byte_streams import ByteStream
from legion_p2p.net.envelope import OTHER_VERSION, VERSION, Envelope, FrameKind, UnknownVersion, decode, encode, refusal
from legion_p2p.net.frames import CutShort, FrameStream, Outgoing, read_and_write
from legion_p2p.net.limits import (
    GARBAGE_SCORE,
    MAX_BODY_BYTES,
    MAX_BUFFERED_BYTES,
    MAX_QUEUED_PONGS,
    MAX_REQUESTS_IN,
    MAX_REQUESTS_IN_TOTAL,
    MAX_STREAMS_PER_LANE_IN,
)
from legion_p2p.net.streams import PROTOCOLS, SharedParts, connection_is_over, muxed, reset

log = logging.getLogger("legion_p2p.net")


class Server:
    """Answers requests."""

    def __init__(self, host: BasicHost, nursery: trio.Nursery, parts: SharedParts) -> None:
        self._nursery = nursery
        self._parts = parts
        self._services: dict[str, ServedRequests] = {}
        self._handling = Slots(SlotLimits(max_items=MAX_REQUESTS_IN_TOTAL, max_per_peer=MAX_REQUESTS_IN))
        self._n_streams: Counter[tuple[PeerId, str, bool]] = Counter()
        self._received = ReceiveBudget(MAX_BUFFERED_BYTES)
        self._once = AnsweredOnce()
        for lane, protocol in PROTOCOLS.items():
            host.set_stream_handler(protocol, partial(self._serve_muxed, lane))

    def serve(self, service: str, handler: Handler, longest: float = math.inf) -> None:
        """Answer requests to this service from now on, but those of more than `longest` bytes; "" is the application."""
        self._services[service] = ServedRequests(handler, longest)

    async def _serve_muxed(self, lane: str, raw: INetStream) -> None:
        assert isinstance(raw, NetStream)  # what a BasicHost accepts
        peer = PeerId(str(raw.muxed_conn.peer_id))
        await self._serve_stream(peer, lane, muxed(raw, lane), "", lambda: connection_is_over(raw))

    async def serve_lane(self, peer: PeerId, lane: OpenLaneStream) -> None:
        """Answer what `peer` asks on a bulk lane, until it ends."""
        await self._serve_stream(peer, "bulk", lane.stream, lane.ticket, lambda: True)

    async def _serve_stream(self, peer: PeerId, lane: str, raw: ByteStream, ticket: str, is_over: Callable[[], bool]) -> None:
        """`is_over`: once the stream has ended, whether its connection has as well."""
        key = (peer, lane, bool(ticket))
        if self._n_streams[key] >= MAX_STREAMS_PER_LANE_IN:
            self._parts.refusals.report(peer, f"more than {MAX_STREAMS_PER_LANE_IN} streams on the {lane} lane")
            await reset(raw)
            return
        self._n_streams[key] += 1
        frames = self._parts.frames(raw, lane)
        try:
            await read_and_write(frames, lambda: self._read_requests(frames, peer, ticket))
        except DecodeError as bad:
            if not (isinstance(bad, CutShort) and is_over()):
                self._parts.refusals.report(peer, str(bad), GARBAGE_SCORE)
        except Exception as broken:
            log.debug("stream of %s on %s: %r", peer, lane, broken)
        finally:
            frames.end()
            self._n_streams[key] -= 1
            if not self._n_streams[key]:
                del self._n_streams[key]
            await reset(raw)

    async def _read_requests(self, frames: FrameStream, peer: PeerId, ticket: str) -> None:
        while True:
            try:
                envelope_bytes, body_bytes = await frames.read_head()
            except EOFError:
                return
            packed = await frames.read_exactly(envelope_bytes)
            try:
                envelope = decode(packed)
            except UnknownVersion as unknown:
                await frames.skip(body_bytes)
                self._parts.other_version.tell((peer, f"it speaks {unknown}"))
                _refuse(frames, unknown.request_id, OTHER_VERSION, str(unknown))
                continue
            if envelope.kind == FrameKind.PING:
                await frames.skip(body_bytes)
                if len(frames) < MAX_QUEUED_PONGS:
                    frames.put(encode(Envelope(VERSION, envelope.id, FrameKind.PONG), 0))
            elif envelope.kind == FrameKind.REQUEST:
                with self._parts.counters.receiving(peer, frames.lane, body_bytes):
                    await self._take_request(frames, peer, envelope, body_bytes, ticket)
            else:
                raise DecodeError(f"a {envelope.kind.name} where only requests belong")

    async def _take_request(self, frames: FrameStream, peer: PeerId, envelope: Envelope, body_bytes: int, ticket: str) -> None:
        served = self._services.get(envelope.service)
        fits = served is not None and body_bytes <= served.longest
        slot = self._handling.begin(peer) if fits else None
        if served is None or slot is None:
            # read on to the end: not reading would stall the stream for everything behind it
            await frames.skip(body_bytes)
            if len(frames) < MAX_QUEUED_PONGS + MAX_REQUESTS_IN:
                if served is None:
                    reason = "this peer does not answer such requests" + ("" if envelope.service else " yet")
                    _refuse(frames, envelope.id, "NotServingError", reason)
                elif not fits:
                    _refuse(frames, envelope.id, TOO_LONG, too_long(body_bytes, served))
                else:
                    _refuse(frames, envelope.id, "BusyError", f"more than {MAX_REQUESTS_IN} requests at once, or many of others")
            return
        n_buffered = n_read = 0

        def admit(n_bytes: int) -> None:
            nonlocal n_buffered, n_read
            n_read += n_bytes
            if not self._received.take(peer, n_bytes):
                raise _NoRoom
            n_buffered += n_bytes

        try:
            body = await frames.read_body(body_bytes, admit)
        except _NoRoom:
            self._done(slot, peer, n_buffered)
            await frames.skip(body_bytes - n_read)
            _refuse(frames, envelope.id, "BusyError", "too much is being received from this peer, or from all peers together")
            return
        except BaseException:  # cancelled as well, when the stream ends: what it held is free again
            self._done(slot, peer, n_buffered)
            raise
        name = request_name(ticket, envelope.id) if ticket else ""
        handler = self._once.handler_of(peer, served.handler, name, envelope.again)
        # not in the stream's nursery: a handler that has begun is not torn down because the asker went away
        self._nursery.start_soon(self._answer, frames, peer, envelope.id, handler, body, slot)

    async def _answer(
        self, frames: FrameStream, peer: PeerId, request_id: int, handler: Handler, body: bytes, slot: Slot
    ) -> None:
        body_bytes = len(body)
        try:
            with ExitStack() as afterwards:
                frame = await self._run_handler(frames, peer, request_id, handler, body, afterwards)
                # the slot is taken until the reply is on its way: a peer that does not read gets no further ones
                await frame.done.wait()
        finally:
            self._done(slot, peer, body_bytes)

    async def _run_handler(
        self, frames: FrameStream, peer: PeerId, request_id: int, handler: Handler, body: bytes, afterwards: ExitStack
    ) -> Outgoing:
        try:
            reply = await handler(peer, body)
            priority = Priority.ROUND
            if isinstance(reply, ThrottledReply):
                afterwards.callback(reply.sent)
                priority, reply = reply.priority, reply.reply
            limit = MAX_BODY_BYTES[frames.lane]
            if len(reply) > limit:
                raise UsageError(f"reply of {len(reply)} bytes on the {frames.lane} lane, limit is {limit}")
        except LegionError as refused:
            return _refuse(frames, request_id, type(refused).__name__, str(refused))
        except Exception:  # a mistake of ours, which a stranger may have provoked: it must not end the peer
            log.exception("a handler failed on a request of %s", peer)
            return _refuse(frames, request_id, "InternalError", "the other side failed to handle it; its log tells why")
        return frames.put(encode(Envelope(VERSION, request_id, FrameKind.REPLY), len(reply)), reply, priority)

    def _done(self, slot: Slot, peer: PeerId, body_bytes: int) -> None:
        self._received.give_back(peer, body_bytes)
        self._handling.end(slot)


class _NoRoom(Exception):
    """Too much is being received."""


def _refuse(frames: FrameStream, request_id: int, error: str, reason: str) -> Outgoing:
    return frames.put(encode(refusal(request_id, error, reason), 0))
