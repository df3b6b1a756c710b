"""The half of the messenger that asks: the streams that this side opened, and the requests on them.

For each peer and lane there is at most one such stream on their libp2p connection. One that breaks fails its outstanding requests
at once; a request that had not been written yet is tried once more on a new stream.

Bulk goes over a connection of its own where there can be one (bulk_lanes.py). Elsewhere, and until it is open, the libp2p stream
serves. If the lane breaks, its outstanding requests go on over the libp2p stream; those that had been sent whole say so, and are
not carried out twice (answered_once.py).
"""

import logging
from collections import deque

import trio
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID

from legion_p2p.concurrency.semaphore import PeerSemaphore
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.lanes import LaneAttempts
from legion_p2p.core.priority import Priority
from legion_p2p.core.slots import SlotLimits
from legion_p2p.core.spliced import Bytes
from legion_p2p.errors import DecodeError, RefusedError, RemoteProtocolError, UnreachableError, UsageError
from legion_p2p.net.answered_once import request_name
from legion_p2p.net.bulk_lanes import BulkLanes, OpenLaneStream
from legion_p2p.net.byte_streams import ByteStream
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.envelope import OTHER_VERSION, FrameKind, UnknownVersion, decode
from legion_p2p.net.frames import CutShort, FrameStream, Side, read_and_write
from legion_p2p.net.limits import GARBAGE_SCORE, MAX_BODY_BYTES, MAX_REQUESTS_OUT, OPEN_TIMEOUT_S
from legion_p2p.net.peer_score import REFUSED
from legion_p2p.net.request_stream import RequestStream, StreamKey
from legion_p2p.net.streams import PROTOCOLS, SharedParts, connection_is_over, muxed, reset

RTTS_KEPT = 5  # of each peer, of which the shortest counts: delay is only ever added
MAX_RTT_PEERS = 4096
LANE_PATIENCE_S = 2.0  # from the first request on; three round trips and a handshake take less on most paths

log = logging.getLogger("legion_p2p.net")


class Client:
    """Sends requests, and takes their replies."""

    def __init__(
        self, host: BasicHost, nursery: trio.Nursery, dialer: Dialer, parts: SharedParts, lanes: BulkLanes | None
    ) -> None:
        self._host = host
        self._nursery = nursery
        self._dialer = dialer
        self._parts = parts
        self._lanes = lanes
        self._attempts = LaneAttempts()
        self._streams: dict[StreamKey, RequestStream] = {}
        self._slots = {priority: PeerSemaphore(SlotLimits(max_per_peer=MAX_REQUESTS_OUT[priority.lane])) for priority in Priority}
        self._rtts: BoundedMap[PeerId, deque[float]] = BoundedMap(MAX_RTT_PEERS)
        parts.refusals.refused.add(self._drop)

    def prefer_direct(self, peer: PeerId) -> None:
        """Use the new direct connection for later requests. Those that went through a relay end there."""
        for lane in PROTOCOLS:
            key = StreamKey(peer, lane)
            stream = self._streams.get(key)
            if stream is not None and stream.relayed:
                del self._streams[key]
                stream.retire()
        self._attempts.lasted(peer)

    def rtt_s(self, peer: PeerId) -> float | None:
        """The shortest of the last few round trips to it."""
        return min(self._rtts.get(peer, ()), default=None)

    async def call(self, peer: PeerId, service: str, body: Bytes, priority: Priority = Priority.CONTROL) -> bytes:
        """`request` of services.ports.Messenger, to any service of the other side."""
        limit = MAX_BODY_BYTES[priority.lane]
        if len(body) > limit:
            raise UsageError(f"request of {len(body)} bytes on the {priority.lane} lane, limit is {limit}")
        async with self._slots[priority].slot((peer,)):
            return await self._call_in_turn(peer, service, body, priority)

    async def _call_in_turn(self, peer: PeerId, service: str, body: Bytes, priority: Priority) -> bytes:
        retried = False
        again = ""
        may_use_lane = priority.lane == "bulk" and self._lanes is not None
        while True:
            stream = await self._opened_lane(peer) if may_use_lane else None
            stream = stream or await self._opened(StreamKey(peer, priority.lane))
            pending = stream.send(service, body, priority, again)
            with self._parts.counters.sending(peer, priority.lane, len(body), lambda: self.rtt_s(peer)) as upload:
                try:
                    await pending.done.wait()
                finally:
                    stream.forget(pending)
                    upload.has_arrived = pending.done.is_set() and pending.error is None
            if isinstance(pending.error, UnreachableError) and stream.ticket:
                may_use_lane = False
                # what was not written whole cannot have been carried out
                again = request_name(stream.ticket, pending.id) if pending.frame.written else ""
                continue
            if isinstance(pending.error, UnreachableError) and not pending.frame.begun and not retried:
                retried = True  # the stream broke before the request was on it: the other side cannot have seen it
                continue
            if pending.error is not None:
                raise pending.error
            return pending.reply

    async def _opened(self, key: "StreamKey") -> "RequestStream":
        self._check(key.peer)
        stream = self._streams.get(key) or self._start(key)
        await stream.opened.wait()
        if stream.frames is None:
            raise UnreachableError(key.peer, stream.reason)
        return stream

    async def _opened_lane(self, peer: PeerId) -> "RequestStream | None":
        """The bulk lane, if there is one soon."""
        self._check(peer)
        key = StreamKey(peer, "bulk", on_lane=True)
        stream = self._streams.get(key)
        if stream is None:
            if not self._attempts.may_try(peer, trio.current_time()):
                return None
            stream = self._start(key)
        with trio.move_on_at(stream.began_at + LANE_PATIENCE_S):
            await stream.opened.wait()
        return None if stream.frames is None else stream

    def _check(self, peer: PeerId) -> None:
        if self._parts.refusals.is_refused(peer):
            raise UnreachableError(peer, REFUSED)

    def _start(self, key: "StreamKey") -> "RequestStream":
        stream = self._streams[key] = RequestStream(key)
        # in a task of its own: it outlives the request that asked for it
        self._nursery.start_soon(self._run_lane if key.on_lane else self._run, stream)
        return stream

    async def _run(self, stream: "RequestStream") -> None:
        raw: ByteStream | None = None
        opened: INetStream | None = None
        try:
            with stream.scope:
                try:
                    await self._dialer.connect(stream.peer)
                    with trio.fail_after(OPEN_TIMEOUT_S):
                        opened = await self._host.new_stream(ID.from_base58(stream.peer), [PROTOCOLS[stream.lane]])
                    assert isinstance(opened, NetStream)  # what a BasicHost opens
                    stream.relayed = opened.muxed_conn.get_connection_type() is ConnectionType.RELAYED
                    raw = muxed(opened, stream.lane)
                    await self._use(stream, raw)
                except Exception as failed:
                    self._explain(stream, failed, is_over=opened is not None and connection_is_over(opened))
        finally:
            self._end(stream)
            if raw is not None:
                await reset(raw)

    async def _run_lane(self, stream: "RequestStream") -> None:
        assert self._lanes is not None
        lane: OpenLaneStream | None = None
        was_tried = False
        try:
            with stream.scope:
                try:
                    await self._dialer.connect(stream.peer)
                    was_tried = True
                    with trio.fail_after(OPEN_TIMEOUT_S):
                        lane = await self._lanes.open(stream.peer)
                    stream.ticket = lane.ticket
                    await self._use(stream, lane.stream, stream.wait_until_idle)
                except Exception as failed:
                    self._explain(stream, failed, is_over=True)
        finally:
            if stream.is_idle:
                self._attempts.lasted(stream.peer)
            elif was_tried:
                self._attempts.failed(stream.peer, trio.current_time())
            self._end(stream)
            if lane is not None:
                self._lanes.close(stream.peer, lane)

    async def _use(self, stream: "RequestStream", raw: ByteStream, *others: Side) -> None:
        frames = stream.frames = self._parts.frames(raw, stream.lane)
        stream.opened.set()
        await read_and_write(frames, lambda: self._read_replies(stream, frames), *others)

    def _explain(self, stream: "RequestStream", failed: Exception, *, is_over: bool) -> None:
        """Why a stream is over; `is_over`: so is its connection."""
        if isinstance(failed, CutShort) and is_over:
            stream.reason = "the connection broke"
        elif isinstance(failed, DecodeError):
            stream.error = RemoteProtocolError(stream.peer, str(failed))
            self._parts.refusals.report(stream.peer, str(failed), GARBAGE_SCORE)
        elif isinstance(failed, UnreachableError):
            stream.reason = failed.reason
        elif isinstance(failed, trio.TooSlowError):
            stream.reason = f"it did not answer in {OPEN_TIMEOUT_S:.0f} s"
        else:
            stream.reason = "the connection broke"
            log.debug("stream to %s on %s: %r", stream.peer, stream.lane, failed)

    def _end(self, stream: "RequestStream") -> None:
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]
        stream.fail()

    async def _read_replies(self, stream: "RequestStream", frames: FrameStream) -> None:
        while True:
            try:
                envelope_bytes, body_bytes = await frames.read_head()
            except EOFError:
                stream.reason = "it ended the stream"
                return
            try:
                envelope = decode(await frames.read_exactly(envelope_bytes))
            except UnknownVersion as unknown:
                self._parts.other_version.tell((stream.peer, f"it answers in {unknown}"))
                raise DecodeError(f"answered in {unknown}") from unknown
            pending = stream.pending.get(envelope.id)
            if envelope.kind == FrameKind.PONG:
                if not 0 < envelope.id <= stream.last_id:  # a guess, to seem nearer than it is
                    raise DecodeError("a pong to a ping that was never sent")
                await frames.skip(body_bytes)
                self._learn_rtt(stream, envelope.id)
            elif envelope.kind not in (FrameKind.REPLY, FrameKind.REFUSAL):
                raise DecodeError(f"a {envelope.kind.name} where only replies belong")
            elif pending is None:  # its asker gave up meanwhile
                if not 0 < envelope.id <= stream.last_id:
                    raise DecodeError("a reply to a request that was never sent")
                await frames.skip(body_bytes)
            else:
                with self._parts.counters.receiving(stream.peer, stream.lane, body_bytes):
                    body = await frames.read_body(body_bytes)
                if envelope.kind == FrameKind.REFUSAL:
                    pending.error = RefusedError(stream.peer, envelope.error, envelope.reason)
                    if envelope.error == OTHER_VERSION:
                        self._parts.other_version.tell((stream.peer, f"it refuses {envelope.reason}"))
                else:
                    pending.reply = body
                stream.forget(pending)
                pending.done.set()

    def _learn_rtt(self, stream: "RequestStream", ping_id: int) -> None:
        if stream.ping_id != ping_id or stream.ping_frame is None:
            return
        stream.ping_frame = None
        rtts = self._rtts.setdefault(stream.peer, deque(maxlen=RTTS_KEPT))
        rtts.append(max(trio.current_time() - stream.ping_sent_at, 1e-6))

    def _drop(self, peer: PeerId) -> None:
        """It is refused from now on: end the streams to it."""
        for key, stream in tuple(self._streams.items()):
            if key.peer == peer:
                stream.reason = REFUSED
                stream.scope.cancel()
