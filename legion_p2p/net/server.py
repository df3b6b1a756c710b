"""The half of the messenger that answers: the streams that others opened, and what is counted of both halves together.

What a stranger sends wrongly costs it standing, and the stream; never the host.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID

from legion_p2p.core.bandwidth import MIN_TRANSFER_BYTES, RateEstimator
from legion_p2p.core.contact import Gift
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, LegionError, UsageError
from legion_p2p.net.frames import FrameStream, Outgoing, RightOfWay
from legion_p2p.net.limits import (
    GARBAGE_OFFENCES,
    MAX_BODY_BYTES,
    MAX_BUFFERED_BYTES,
    MAX_QUEUED_PONGS,
    MAX_REQUESTS_IN,
    MAX_REQUESTS_IN_TOTAL,
    MAX_STREAMS_PER_LANE_IN,
)
from legion_p2p.net.netem import Shaper
from legion_p2p.net.peer_score import PeerScore
from legion_p2p.net.wire import VERSION, Envelope, Kind, UnknownVersion, decode, encode, refusal

PROTOCOLS = {"control": "/legion/control/1", "bulk": "/legion/bulk/1"}

Handler = Callable[[PeerId, bytes], Awaitable[bytes | Gift]]

log = logging.getLogger("legion_p2p.net")


class Answering:
    """Answers requests."""

    def __init__(self, host: BasicHost, nursery: trio.Nursery, standing: PeerScore, shaper: Shaper | None) -> None:
        self._host = host
        self._nursery = nursery
        self._standing = standing
        self._shaper = shaper
        self._way = RightOfWay()
        self._download = RateEstimator(best=False)
        self._services: dict[str, Handler] = {}
        self._n_handling: Counter[PeerId] = Counter()
        self._n_streams_in: Counter[tuple[PeerId, str]] = Counter()
        self._n_buffered = 0
        self._n_sent = 0
        self._n_received = 0
        for lane, protocol in PROTOCOLS.items():
            host.set_stream_handler(protocol, lambda stream, lane=lane: self._serve_stream(stream, lane))

    def serve(self, handler: Handler) -> None:
        self._services[""] = handler

    def serve_internally(self, service: str, handler: Handler) -> None:
        """Answer requests of another part of the network layer."""
        self._services[service] = handler

    async def _serve_stream(self, raw: NetStream, lane: str) -> None:
        peer = PeerId(str(raw.muxed_conn.peer_id))
        key = (peer, lane)
        if self._n_streams_in[key] >= MAX_STREAMS_PER_LANE_IN:
            self._offend(peer, f"more than {MAX_STREAMS_PER_LANE_IN} streams on the {lane} lane", 1.0)
            await reset(raw)
            return
        self._n_streams_in[key] += 1
        stream = FrameStream(raw, lane, self._count_sent, self._count_received, self._way, self._shape(lane))
        try:
            await read_and_write(stream, lambda: self._read_requests(stream, peer, lane))
        except DecodeError as bad:
            self._offend(peer, str(bad), GARBAGE_OFFENCES)
        except Exception as broken:
            log.debug("stream of %s on %s: %r", peer, lane, broken)
        finally:
            stream.end()
            self._n_streams_in[key] -= 1
            if not self._n_streams_in[key]:
                del self._n_streams_in[key]
            await reset(raw)

    async def _read_requests(self, stream: FrameStream, peer: PeerId, lane: str) -> None:
        while True:
            try:
                envelope_bytes, body_bytes = await stream.read_head()
            except EOFError:
                return
            packed = await stream.read_exactly(envelope_bytes)
            try:
                envelope = decode(packed)
            except UnknownVersion as unknown:
                await skip(stream, body_bytes)
                _refuse(stream, unknown.request_id, "UnknownVersionError", str(unknown))
                continue
            if envelope.kind == Kind.PING:
                await skip(stream, body_bytes)
                if len(stream) < MAX_QUEUED_PONGS:
                    stream.put(encode(Envelope(VERSION, envelope.id, Kind.PONG), 0))
            elif envelope.kind == Kind.REQUEST:
                with self._receiving(lane, body_bytes):
                    await self._take_request(stream, peer, lane, envelope, body_bytes)
            else:
                raise DecodeError(f"a {envelope.kind.name} where only requests belong")

    async def _take_request(self, stream: FrameStream, peer: PeerId, lane: str, envelope: Envelope, body_bytes: int) -> None:
        refused = self._why_refuse(peer, envelope.service)
        if refused is not None:
            # read on to the end: not reading would stall the stream for everything behind it
            await skip(stream, body_bytes)
            if len(stream) < MAX_QUEUED_PONGS + MAX_REQUESTS_IN:
                _refuse(stream, envelope.id, *refused)
            return
        handler = self._services[envelope.service]
        self._n_handling[peer] += 1
        chunks: list[memoryview] = []
        n_read = 0
        try:
            while n_read < body_bytes:
                chunk = await stream.read_some(body_bytes - n_read)
                n_read += len(chunk)
                # counted as it arrives: announcing a large frame costs a stranger nothing, so it must not use up anything
                self._n_buffered += len(chunk)
                chunks.append(chunk)
                if self._n_buffered > MAX_BUFFERED_BYTES:
                    break
            if n_read < body_bytes:
                self._done_handling(peer, n_read)
                chunks.clear()
                await skip(stream, body_bytes - n_read)
                _refuse(stream, envelope.id, "BusyError", "too much is being received from all peers together")
                return
        except BaseException:  # cancelled as well, when the stream ends: what it held is free again
            if chunks or not n_read:
                self._done_handling(peer, n_read)
            raise
        body = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        # not in the stream's nursery: a handler that has begun is not torn down because the asker went away
        self._nursery.start_soon(self._answer, stream, peer, lane, envelope, handler, body)

    def _why_refuse(self, peer: PeerId, service: str) -> tuple[str, str] | None:
        if service not in self._services:
            return "NotServingError", "this peer does not answer such requests" + (" yet" if not service else "")
        if self._n_handling[peer] >= MAX_REQUESTS_IN:
            return "BusyError", f"more than {MAX_REQUESTS_IN} requests at once"
        if self._n_handling.total() >= MAX_REQUESTS_IN_TOTAL:
            return "BusyError", "too many requests of all peers together"
        return None

    async def _answer(
        self, stream: FrameStream, peer: PeerId, lane: str, envelope: Envelope, handler: Handler, body: bytes
    ) -> None:
        body_bytes = len(body)
        try:
            with ExitStack() as afterwards:
                frame = await self._run_handler(stream, peer, lane, envelope, handler, body, afterwards)
                # the slot is taken until the reply is on its way: a peer that does not read gets no further ones
                await frame.done.wait()
        finally:
            self._done_handling(peer, body_bytes)

    async def _run_handler(
        self, stream: FrameStream, peer: PeerId, lane: str, envelope: Envelope, handler: Handler, body: bytes,
        afterwards: ExitStack,
    ) -> Outgoing:  # fmt: skip
        try:
            reply = await handler(peer, body)
            rank = 0
            if isinstance(reply, Gift):
                afterwards.callback(reply.sent)
                reply, rank = reply.body, reply.rank
            if len(reply) > MAX_BODY_BYTES[lane]:
                raise UsageError(f"reply of {len(reply)} bytes on the {lane} lane, limit is {MAX_BODY_BYTES[lane]}")
        except LegionError as refused:
            return _refuse(stream, envelope.id, type(refused).__name__, str(refused))
        except Exception:  # a mistake of ours, which a stranger may have provoked: it must not end the peer
            log.exception("a handler failed on a request of %s", peer)
            return _refuse(stream, envelope.id, "InternalError", "the other side failed to handle it; its log tells why")
        return stream.put(encode(Envelope(VERSION, envelope.id, Kind.REPLY), len(reply)), reply, rank=rank)

    def _done_handling(self, peer: PeerId, body_bytes: int) -> None:
        self._n_buffered -= body_bytes
        self._n_handling[peer] -= 1
        if not self._n_handling[peer]:
            del self._n_handling[peer]

    # standing

    def is_refused(self, peer: PeerId) -> bool:
        """Whether `peer` is kept out for its offences."""
        return self._standing.is_refused(peer, trio.current_time())

    def _offend(self, peer: PeerId, offence: str, weight: float) -> None:
        log.debug("offence of %s: %s", peer, offence)
        if self._standing.offend(peer, weight, trio.current_time()):
            log.warning("disconnecting %s, and refusing it for a while: %s", peer, offence)
            self._nursery.start_soon(self._disconnect, peer)

    async def _disconnect(self, peer: PeerId) -> None:
        try:
            await self._host.get_network().close_peer(ID.from_base58(peer))
        except Exception as failed:
            log.debug("closing %s: %r", peer, failed)

    def _shape(self, lane: str) -> Callable[[int], float] | None:
        return self._shaper.lane(lane) if self._shaper is not None else None

    def _count_sent(self, n_bytes: int) -> None:
        self._n_sent += n_bytes

    def _count_received(self, n_bytes: int) -> None:
        self._n_received += n_bytes
        if self._download.is_busy:
            self._download.moved(n_bytes, trio.current_time())

    @contextmanager
    def _receiving(self, lane: str, n_bytes: int) -> Iterator[None]:
        """A body of so many bytes is being read."""
        if lane != "bulk" or n_bytes < MIN_TRANSFER_BYTES:
            yield
            return
        began = trio.current_time()
        self._download.begin(began)
        try:
            yield
        finally:
            self._download.end(trio.current_time(), began)


async def read_and_write(stream: FrameStream, read: Callable[[], Awaitable[None]]) -> None:
    """Read and write until either ends or fails; raises the first failure, by itself."""
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def until_end(side: Callable[[], Awaitable[None]]) -> None:
            try:
                await side()
            except Exception as failed:
                failures.append(failed)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_end, read)
        nursery.start_soon(until_end, stream.write_queued)
    if failures:
        raise failures[0]


async def skip(stream: FrameStream, n_bytes: int) -> None:
    """Read so many bytes, and forget them."""
    while n_bytes:
        n_bytes -= len(await stream.read_some(n_bytes))


async def reset(stream: NetStream) -> None:
    """End it, whatever state it is in."""
    with trio.move_on_after(1.0, shield=True):
        try:
            await stream.reset()
        except Exception as failed:
            log.debug("resetting a stream: %r", failed)


def _refuse(stream: FrameStream, request_id: int, error: str, reason: str) -> Outgoing:
    return stream.put(encode(refusal(request_id, error, reason), 0))
