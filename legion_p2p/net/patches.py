"""What has to be changed in py-libp2p before it is used, and why. Nothing else in this package reaches into its modules' globals.

Importing this module applies all of it, once per process. tests/net/test_patches.py checks each against the pinned version.
"""

import hashlib
import logging
import random
import struct
import sys
import time
import types
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import libp2p.io.utils
import libp2p.pubsub.gossipsub
import trio
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.network.connection import swarm_connection
from libp2p.network.stream import net_stream
from libp2p.network.swarm import _NegativePeerCache
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer import multiselect_client
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub import pubsub
from libp2p.pubsub import utils as pubsub_utils
from libp2p.pubsub.pb.rpc_pb2 import RPC
from libp2p.stream_muxer import rw_lock
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from libp2p.tools.anyio_service.api import AsyncFn
from libp2p.tools.anyio_service.exceptions import LifecycleError
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.utils.varint import encode_delim

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.bounded import BoundedMap

KAD_PROTOCOL = TProtocol("/legion/kad/1.0.0")
ZERO_WINDOW_S = 60.0  # a relay that is full passes 64 kbit/s to each peer: a window of 256 KiB takes half a minute
WINDOW_POLL_S = 0.01
MAX_DATA_BYTES = yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE
RECORD_FRESH_S = 600.0  # libp2p's own clock goes by time.time() as well
MAX_RECORDS = 1024  # that were checked: several of each of the peers that there may be connections to
MAX_PLACES = 1 << 14  # in the space of keys that are remembered: a routing table has at most 5120 nodes
UNREAD_SLACK_BYTES = 1 << 20  # what an honest sender may overrun its window by: py-libp2p's accounting is not exact

log = logging.getLogger("legion_p2p.net")


def replace_attributes(where: object, **new: object) -> None:
    """Set attributes of a module or class of libp2p. Raises: AttributeError, if a name is gone: the change would do nothing."""
    for name, value in new.items():
        getattr(where, name)
        setattr(where, name, value)


def _isolate_dht() -> None:
    """Speak our own protocol id, or a peer bootstrapped to a public IPFS node merges with its DHT.

    The parameter `protocol_prefix` does not reach the wire: every module uses the constant that it imported.
    """
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        replace_attributes(module, PROTOCOL_ID=KAD_PROTOCOL)


@lru_cache(MAX_PLACES)
def _place_of(peer: bytes) -> int:
    """Where a node lies in the space of keys."""
    return int.from_bytes(hashlib.sha256(peer).digest(), "big")


def _answer_quickly() -> None:
    """Each question to the DHT hashes and sorts all nodes that are known, and compares each of the twenty that it names with all
    that are connected: more than half of what an answer costs.
    """

    def find_local_closest_peers(table: RoutingTable, key: bytes, count: int = 20) -> list[ID]:
        target = _place_of(key)
        by_distance = {_place_of(peer.to_bytes()) ^ target: peer for bucket in table.buckets for peer in bucket.peers}
        return [by_distance[distance] for distance in sorted(by_distance)[:count]]

    def get_connection_type(host: IHost, peer_id: ID) -> Message.ConnectionType:
        if peer_id in host.get_network().connections:
            return Message.ConnectionType.CONNECTED
        known = cast(PeerStore, host.get_peerstore()).peer_data_map.get(peer_id)
        may_connect = known is not None and not known.is_expired() and known.get_addrs()
        return Message.ConnectionType.CAN_CONNECT if may_connect else Message.ConnectionType.NOT_CONNECTED

    replace_attributes(RoutingTable, find_local_closest_peers=find_local_closest_peers)
    replace_attributes(kad_dht, get_connection_type=get_connection_type)


def _marshal_records_once() -> None:
    """An answer of the DHT carries the signed records of 20 peers, a message of gossip its sender's. They never change."""
    marshal = Envelope.marshal_envelope

    def marshal_envelope(envelope: Envelope) -> bytes:
        known: bytes | None = envelope.__dict__.get("marshalled")
        if known is None:
            known = envelope.__dict__["marshalled"] = marshal(envelope)
        return known

    replace_attributes(Envelope, marshal_envelope=marshal_envelope)


def _believe_records_once() -> None:
    """Each message of gossip carries its sender's signed addresses. To check again what was checked a moment ago took a tenth of
    what an idle peer costs, and addresses that are stored for two hours need not be stored again meanwhile.
    """
    consume = pubsub_utils.maybe_consume_signed_record

    def consume_if_new(message: RPC, host: IHost, peer_id: ID) -> bool:
        record = message.senderRecord
        store = cast(PeerStore, host.get_peerstore())
        checked = store.__dict__.setdefault("checked_records", BoundedMap(MAX_RECORDS))
        is_fresh = checked.get((peer_id, record), float("-inf")) > time.time() - RECORD_FRESH_S
        if record and is_fresh and peer_id in store.peer_record_map:
            return True
        is_good = consume(message, host, peer_id)
        if record and is_good:
            checked[peer_id, record] = time.time()
        return is_good

    for module in (pubsub, libp2p.pubsub.gossipsub):
        replace_attributes(module, maybe_consume_signed_record=consume_if_new)


def _route_logging() -> None:
    """libp2p turns propagation off and warns about peers that close a connection: all of it is detail here, at DEBUG."""
    for name in ("libp2p", "multiaddr"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.addHandler(_AsDebug())
        logger.propagate = False
        # libp2p has set this for itself; multiaddr tells about each part of each address
        logger.setLevel(logging.WARNING)
    # logs to the root logger, which would set it up to print on stderr
    replace_attributes(swarm_connection, logging=logging.getLogger("libp2p.network.connection"))


class _AsDebug(logging.Handler):
    """Hands records on to `legion_p2p.net.libp2p`, none of them louder than DEBUG."""

    _target = logging.getLogger("legion_p2p.net.libp2p")

    def emit(self, record: logging.LogRecord) -> None:
        if self._target.isEnabledFor(logging.DEBUG):
            self._target.debug("%s: %s", record.name, record.getMessage())


def _read_patiently() -> None:
    """`read_exactly` gives up after 100 short reads: a 64 KiB Noise message over a link of small segments needs more."""
    libp2p.io.utils.read_exactly.__defaults__ = (1000,)


def _forget_failures() -> None:
    """A peer whose addresses failed once is not dialed for 60 s: it would miss a restarted bootstrap. Our dialer paces itself."""
    replace_attributes(_NegativePeerCache, is_blocked=lambda self, peer_id: False, mark_failed=lambda self, peer_id: None)


def _expire_quietly() -> None:
    """Its sweep and its DHT raise at the first peer whose addresses have expired: nothing would ever be swept, and no question
    whose answer names such a peer would be answered. Two hours after a node has started, that is most of them.
    """

    def maybe_delete_peer_record(store: PeerStore, peer_id: ID) -> None:
        known = store.peer_data_map.get(peer_id)
        if known is None or known.is_expired() or not known.get_addrs():
            store.peer_record_map.pop(peer_id, None)

    replace_attributes(PeerStore, maybe_delete_peer_record=maybe_delete_peer_record)


def _evict_rarely() -> None:
    """Once its store of peers is full, it sorts all 4096 of them for each newcomer, which takes 9 ms. Here a sixteenth goes at
    once, in the same order: those without addresses first, then those that have expired, then those that came first.
    """

    def enforce_record_limit(store: PeerStore) -> None:
        records = store.peer_record_map
        if len(records) > store.max_records:
            for peer_id in sorted(records, key=lambda peer_id: records[peer_id].seq)[: _surplus(len(records), store.max_records)]:
                del records[peer_id]

    def enforce_peer_limit(store: PeerStore) -> None:
        peers = store.peer_data_map
        if len(peers) > store.max_peers:
            first = sorted(peers, key=lambda peer_id: (bool(peers[peer_id].get_addrs()), not peers[peer_id].is_expired()))
            for peer_id in first[: _surplus(len(peers), store.max_peers)]:
                store.peer_record_map.pop(peer_id, None)
                del peers[peer_id]

    replace_attributes(PeerStore, _enforce_record_limit=enforce_record_limit, _enforce_peer_limit=enforce_peer_limit)


def _surplus(n: int, limit: int) -> int:
    """How many of `n` are to go, so that it does not come to that again soon."""
    return n - limit + limit // 16


def _bound_unread() -> None:
    """yamux only warns of a peer that ignores its window: unread streams would grow without bound. Close such a connection."""

    def get(stream: yamux.YamuxStream) -> int:
        window: int = stream.__dict__["recv_window"]
        return window

    def put(stream: yamux.YamuxStream, value: int) -> None:
        stream.__dict__["recv_window"] = value
        if value < 0:
            unread = len(stream.conn.stream_buffers.get(stream.stream_id, b""))
            if unread > max(stream.target_recv_window, yamux.DEFAULT_WINDOW_SIZE) + UNREAD_SLACK_BYTES:
                # the one exception that makes its read loop close the connection
                raise trio.TooSlowError

    yamux.YamuxStream.recv_window = property(get, put)  # type: ignore[assignment]


def _update_windows_rarely() -> None:
    """Announce free window when half of it is free, as go-yamux does. py-libp2p announces after every read, and reads varints
    byte by byte: 70 frames for one DHT query, half of its cost.
    """

    async def update(stream: yamux.YamuxStream, *, bytes_read: int = 0) -> None:
        buffered = len(stream.conn.stream_buffers.get(stream.stream_id, b""))
        if bytes_read and (meter := stream.__dict__.get("meter")) is not None:
            meter(0, bytes_read)
        if 2 * (stream.target_recv_window - stream.recv_window - buffered) < stream.target_recv_window:
            return
        async with stream.window_lock:
            increment = stream._grow_to_delta(buffered) + stream._apply_autotune_epoch(buffered)
        await stream.send_window_update(increment)

    replace_attributes(yamux.YamuxStream, _auto_tune_and_send_window_update=update)


def _wait_for_windows() -> None:
    """A writer gives up after 5 s without room at the other side, which resets its stream: a relay that shares 10 Mbit/s among
    many takes longer. What stalls for good is ended by our own limits.
    """

    async def write(stream: yamux.YamuxStream, data: bytes) -> None:
        sent = 0
        meter = stream.__dict__.get("meter")
        async with stream.rw_lock.write_lock():  # what one writer writes stays together
            while sent < len(data):
                with trio.move_on_after(ZERO_WINDOW_S) as stall:
                    while stream.send_window <= 0 and not stream.send_closed and not stream.closed:  # noqa: ASYNC110
                        await trio.sleep(WINDOW_POLL_S)
                if stall.cancelled_caught or stream.send_closed or stream.closed:
                    raise MuxedStreamError("the stream is closed, or the other side does not read it")
                size = min(stream.send_window, MAX_DATA_BYTES, len(data) - sent)
                stream.send_window -= size
                header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, stream.stream_id, size)
                await stream.conn._write_frame(header + bytes(data[sent : sent + size]))
                sent += size
                if meter is not None:
                    meter(size, 0)

    replace_attributes(yamux.YamuxStream, write=write)


def _meter_streams() -> None:
    """libp2p counts no bytes. A stream that has its protocol gets a meter from its host, and tells it of bytes."""
    set_protocol = net_stream.NetStream.set_protocol

    def set_and_meter(stream: net_stream.NetStream, protocol_id: TProtocol) -> None:
        set_protocol(stream, protocol_id)
        meter_of = getattr(getattr(stream.swarm_conn, "swarm", None), "meter_of", None)
        if meter_of is not None:
            below = cast(yamux.YamuxStream, stream.muxed_stream)  # the only muxer there is
            below.__dict__["meter"] = meter_of(str(stream.muxed_conn.peer_id), str(protocol_id), below.is_initiator)

    replace_attributes(net_stream.NetStream, set_protocol=set_and_meter)


class _Trio(types.ModuleType):
    """trio, with some names replaced."""

    def __init__(self, **replaced: object) -> None:
        super().__init__("trio")
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> object:
        return getattr(trio, name)


def _lock_quickly() -> None:
    """trio's locks yield even when they are free: four out of five steps of the event loop under load were such yields."""
    for module in (yamux, net_stream):
        replace_attributes(module, trio=_Trio(Lock=QuickLock))
    replace_attributes(rw_lock, trio=_Trio(Lock=QuickLock, Semaphore=QuickLock))


def _negotiate_in_one_step() -> None:
    """Name the protocol together with the greeting, as go-libp2p does: one round trip for a new stream instead of two."""
    step_by_step = multiselect_client.MultiselectClient.select_one_of

    async def select_one_of(
        self: multiselect_client.MultiselectClient,
        protocols: Sequence[TProtocol],
        communicator: MultiselectCommunicator,
        negotiate_timeout: int = 30,
    ) -> TProtocol:
        if len(protocols) != 1:
            return await step_by_step(self, protocols, communicator, negotiate_timeout)
        greeting = multiselect_client.MULTISELECT_PROTOCOL_ID
        with trio.move_on_after(negotiate_timeout):
            try:
                await communicator.read_writer.write(encode_delim(greeting.encode()) + encode_delim(protocols[0].encode()))
                answers = [await communicator.read(), await communicator.read()]
            except (MultiselectCommunicatorError, IOException, UnicodeDecodeError) as broken:
                raise MultiselectClientError(f"the connection broke while {protocols[0]} was asked for: {broken!r}") from broken
            if answers != [greeting, protocols[0]]:
                raise MultiselectClientError(f"{protocols[0]} is not spoken there: {answers}")
            return protocols[0]
        raise MultiselectClientError(f"no answer in {negotiate_timeout} s when {protocols[0]} was asked for")

    replace_attributes(multiselect_client.MultiselectClient, select_one_of=select_one_of)


def _widen_subscriptions() -> None:
    """32 messages between gossipsub and us are less than one heartbeat of a large swarm brings."""
    pubsub.SUBSCRIPTION_CHANNEL_SIZE = 1024


def _draw_apart() -> None:
    """Python's global random state is the user's: libp2p would move it on from another thread, so that a seeded data loader drew
    other numbers in each run, and peers that all call random.seed(0) would draw alike.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("libp2p.") and vars(module).get("random") is random:
            module.random = random.SystemRandom()  # type: ignore[attr-defined]


class SturdyManager(TrioManager):
    """Runs libp2p's services; no task of theirs takes the host down.

    An exception out of one task (a stream handler, a message of gossip, a connection's reader) cancels the whole service, and any
    remote can provoke one. Here it ends that task only; daemon tasks are started again. Tasks are not
    registered as children of the task that started them either: that search is linear, and stops with an error at 1000 children.
    """

    def run_task(
        self, async_fn: AsyncFn, *args: Any, daemon: bool = False, name: str | None = None, _internal: bool = False
    ) -> None:
        async def guarded() -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception as error:
                    log.debug("task %s of libp2p failed: %r", name or async_fn, error)
                    if not daemon:
                        return
                await trio.sleep(1.0)

        if self._task_nursery is None or not self.is_running:
            raise LifecycleError("cannot schedule a task: the service is not running")
        self._task_nursery.start_soon(guarded, name=name or getattr(async_fn, "__qualname__", str(async_fn)))


_isolate_dht()
_answer_quickly()
_marshal_records_once()
_believe_records_once()
_route_logging()
_read_patiently()
_forget_failures()
_expire_quietly()
_evict_rarely()
_bound_unread()
_update_windows_rarely()
_wait_for_windows()
_meter_streams()
_lock_quickly()
_negotiate_in_one_step()
_widen_subscriptions()
_draw_apart()
