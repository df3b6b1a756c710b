"""Requests and replies between peers, over libp2p streams: the Messenger of services.ports.

For each peer and lane there is at most one stream that this side opened, for its requests and their replies, and what the other
side opened for its own. A stream that breaks fails its outstanding requests at once; a request that had not been written yet is
tried once more on a new stream. The requests of others: answering.py.
"""

import logging
import math
from collections import deque
from collections.abc import Callable

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID

from legion_p2p.core.bandwidth import MIN_TRANSFER_BYTES, RateEstimator
from legion_p2p.core.contact import Bandwidth, Lane, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, RefusedError, RemoteProtocolError, UnreachableError, UsageError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.frames import FrameStream, Outgoing
from legion_p2p.net.limits import GARBAGE_OFFENCES, MAX_BODY_BYTES, MAX_REQUESTS_OUT, OPEN_TIMEOUT_S
from legion_p2p.net.netem import Shaper
from legion_p2p.net.peer_score import PeerScore
from legion_p2p.net.server import PROTOCOLS, Answering, read_and_write, reset, skip
from legion_p2p.net.wire import VERSION, Envelope, Kind, UnknownVersion, decode, encode

PING_INTERVAL_S = 2.0  # a control request is accompanied by a ping unless there was one so shortly before
RTTS_KEPT = 5  # of each peer, of which the shortest counts: delay is only ever added
MAX_RTT_PEERS = 4096

log = logging.getLogger("legion_p2p.net")


class Messenger(Answering):
    """See services.ports.Messenger."""

    def __init__(
        self, host: BasicHost, nursery: trio.Nursery, dialer: Dialer, book: AddressBook, standing: PeerScore,
        addresses: Callable[[], tuple[str, ...]], shaper: Shaper | None,
    ) -> None:  # fmt: skip
        super().__init__(host, nursery, standing, shaper)
        self._dialer = dialer
        self._book = book
        self._addresses = addresses
        self._upload = RateEstimator(best=True)
        self._links: dict[tuple[PeerId, str], _Link] = {}
        self._turns: dict[tuple[PeerId, str, bool], _Turns] = {}
        self._rtts: dict[PeerId, deque[float]] = {}
        self.peer_id = PeerId(str(host.get_id()))

    # what services see

    async def request(self, peer: PeerId, body: bytes, *, lane: Lane = Lane.CONTROL, rank: int = 0) -> bytes:
        return await self.call(peer, "", body, lane.value, rank)

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._book.add(peer, addresses)

    def addresses(self) -> tuple[str, ...]:
        return self._addresses()

    def connected(self) -> frozenset[PeerId]:
        swarm = self._host.get_network()
        return frozenset(
            PeerId(str(peer)) for peer, conns in swarm.connections.items() if any(not conn.is_closed for conn in conns)
        )

    def rtt_s(self, peer: PeerId) -> float | None:
        return min(self._rtts.get(peer, ()), default=None)

    def traffic(self) -> Traffic:
        return Traffic(sent_bytes=self._n_sent, received_bytes=self._n_received)

    def bandwidth(self) -> Bandwidth:
        now = trio.current_time()
        both = self._shaper.limits_bps() if self._shaper is not None else (math.inf, math.inf)
        limits = (None if limit == math.inf else limit for limit in both)
        return Bandwidth(self._upload.rate_bps(now), self._download.rate_bps(now), *limits)

    def report(self, peer: PeerId, offence: str) -> None:
        self._offend(peer, offence, 1.0)

    # requests to others

    async def call(self, peer: PeerId, service: str, body: bytes, lane: str = "control", rank: int = 0) -> bytes:
        """`request`, to any service."""
        if len(body) > MAX_BODY_BYTES[lane]:
            raise UsageError(f"request of {len(body)} bytes on the {lane} lane, limit is {MAX_BODY_BYTES[lane]}")
        key = (peer, lane, rank > 0)  # what can wait takes no place from what cannot
        turns = self._turns.setdefault(key, _Turns(MAX_REQUESTS_OUT[lane]))
        turns.n_users += 1
        try:
            async with turns.slots:
                return await self._call_in_turn(peer, service, body, lane, rank)
        finally:
            turns.n_users -= 1
            if not turns.n_users and self._turns.get(key) is turns:
                del self._turns[key]

    async def _call_in_turn(self, peer: PeerId, service: str, body: bytes, lane: str, rank: int) -> bytes:
        retried = False
        while True:
            link = await self._open_link(peer, lane)
            pending = link.send(service, body, rank)
            measured = lane == "bulk" and len(body) >= MIN_TRANSFER_BYTES
            began = trio.current_time()
            if measured:
                self._upload.begin(began)
            try:
                await pending.done.wait()
                if measured and pending.error is None:
                    self._upload.moved(len(body), trio.current_time())
            finally:
                link.forget(pending)
                if measured:
                    came = pending.done.is_set() and pending.error is None
                    self._upload.end(trio.current_time(), began if came else None, self.rtt_s(peer) or 0.0)
            if isinstance(pending.error, UnreachableError) and not pending.frame.begun and not retried:
                retried = True  # the stream broke before the request was on it: the other side cannot have seen it
                continue
            if pending.error is not None:
                raise pending.error
            return pending.reply

    async def _open_link(self, peer: PeerId, lane: str) -> "_Link":
        if self._standing.is_refused(peer, trio.current_time()):
            raise UnreachableError(peer, "it is refused here for a while, for its offences")
        key = (peer, lane)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = _Link(peer, lane)
            # in a task of its own: it outlives the request that asked for it
            self._nursery.start_soon(self._run_link, link)
        await link.opened.wait()
        if link.stream is None:
            raise UnreachableError(peer, link.reason)
        return link

    async def _run_link(self, link: "_Link") -> None:
        stream: NetStream | None = None
        try:
            with trio.CancelScope() as link.scope:
                try:
                    await self._dialer.connect(link.peer)
                    with trio.fail_after(OPEN_TIMEOUT_S):
                        stream = await self._host.new_stream(ID.from_base58(link.peer), [PROTOCOLS[link.lane]])
                    link.stream = FrameStream(
                        stream, link.lane, self._count_sent, self._count_received, self._way, self._shape(link.lane)
                    )
                    link.opened.set()
                    await read_and_write(link.stream, lambda: self._read_replies(link))
                except DecodeError as bad:
                    link.error = RemoteProtocolError(link.peer, str(bad))
                    self._offend(link.peer, str(bad), GARBAGE_OFFENCES)
                except UnreachableError as failed:
                    link.reason = failed.reason
                except trio.TooSlowError:
                    link.reason = f"it did not answer in {OPEN_TIMEOUT_S:.0f} s"
                except Exception as failed:
                    link.reason = "the connection broke"
                    log.debug("link to %s on %s: %r", link.peer, link.lane, failed)
        finally:
            if self._links.get((link.peer, link.lane)) is link:
                del self._links[link.peer, link.lane]
            link.fail()
            if stream is not None:
                await reset(stream)

    async def _read_replies(self, link: "_Link") -> None:
        stream = link.stream
        while True:
            try:
                envelope_bytes, body_bytes = await stream.read_head()
            except EOFError:
                link.reason = "it ended the stream"
                return
            try:
                envelope = decode(await stream.read_exactly(envelope_bytes))
            except UnknownVersion as unknown:
                raise DecodeError(f"answered in {unknown}") from unknown
            pending = link.pending.get(envelope.id)
            if envelope.kind == Kind.PONG:
                if not 0 < envelope.id <= link.last_id:  # a guess, to seem nearer than it is
                    raise DecodeError("a pong to a ping that was never sent")
                await skip(stream, body_bytes)
                self._learn_rtt(link, envelope.id)
            elif envelope.kind not in (Kind.REPLY, Kind.REFUSAL):
                raise DecodeError(f"a {envelope.kind.name} where only replies belong")
            elif pending is None:  # its asker gave up meanwhile
                if not 0 < envelope.id <= link.last_id:
                    raise DecodeError("a reply to a request that was never sent")
                await skip(stream, body_bytes)
            else:
                with self._receiving(link.lane, body_bytes):
                    body = await stream.read_exactly(body_bytes)
                if envelope.kind == Kind.REFUSAL:
                    pending.error = RefusedError(link.peer, envelope.error, envelope.reason)
                else:
                    pending.reply = body
                link.forget(pending)
                pending.done.set()

    def _learn_rtt(self, link: "_Link", ping_id: int) -> None:
        if link.ping_id != ping_id or link.ping_frame is None:
            return
        link.ping_frame = None
        rtts = self._rtts.setdefault(link.peer, deque(maxlen=RTTS_KEPT))
        rtts.append(max(trio.current_time() - link.ping_sent_at, 1e-6))
        while len(self._rtts) > MAX_RTT_PEERS:
            del self._rtts[next(iter(self._rtts))]

    async def _disconnect(self, peer: PeerId) -> None:
        for lane in PROTOCOLS:
            link = self._links.get((peer, lane))
            if link is not None:
                link.reason = "it is refused here for a while, for its offences"
                link.scope.cancel()
        await super()._disconnect(peer)


class _Turns:
    """Whose turn it is to have a request in flight to one peer on one lane."""

    def __init__(self, n_slots: int) -> None:
        self.slots = trio.Semaphore(n_slots)
        self.n_users = 0


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("done", "error", "frame", "id", "reply")

    def __init__(self, request_id: int, frame: Outgoing) -> None:
        self.id = request_id
        self.frame = frame
        self.done = trio.Event()
        self.reply = b""
        self.error: Exception | None = None


class _Link:
    """The stream that this side opened to a peer on a lane, from the wish for it to its end."""

    def __init__(self, peer: PeerId, lane: str) -> None:
        self.peer = peer
        self.lane = lane
        self.opened = trio.Event()
        """Set when `stream` is there, or `reason` says why it is not."""
        self.stream: FrameStream | None = None
        self.reason = "this peer is leaving"
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self.pending: dict[int, _Pending] = {}
        self.last_id = 0
        self.ping_id = 0
        self.ping_frame: Outgoing | None = None
        self.ping_sent_at = float("-inf")

    def send(self, service: str, body: bytes, rank: int = 0) -> _Pending:
        """Queue a request, and now and then a ping before it."""
        now = trio.current_time()
        if self.lane == "control" and now - self.ping_sent_at > PING_INTERVAL_S and not len(self.stream):
            self.last_id += 1
            self.ping_id = self.last_id
            self.ping_sent_at = now
            self.ping_frame = self.stream.put(encode(Envelope(VERSION, self.ping_id, Kind.PING), 0))
        self.last_id += 1
        head = encode(Envelope(VERSION, self.last_id, Kind.REQUEST, service=service), len(body))
        pending = _Pending(self.last_id, self.stream.put(head, body, rank=rank))
        if pending.frame.done.is_set():  # the stream has ended between opening and now
            pending.error = self._broken()
            pending.done.set()
        else:
            self.pending[pending.id] = pending
        return pending

    def forget(self, pending: _Pending) -> None:
        """Its asker has the reply, or gave up. If it was not begun yet, it is not sent at all."""
        pending.frame.abandoned = not pending.frame.begun
        self.pending.pop(pending.id, None)

    def fail(self) -> None:
        """Tell everybody who waits that it is over."""
        if self.stream is not None:
            self.stream.end()
        self.opened.set()
        for pending in tuple(self.pending.values()):
            pending.error = self._broken()
            pending.done.set()
        self.pending.clear()

    def _broken(self) -> Exception:
        return self.error or UnreachableError(self.peer, self.reason)
