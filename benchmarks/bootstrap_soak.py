"""A bootstrap node that runs for months, in minutes: peers come, ask and go by the thousand, and its memory stays flat.

    python benchmarks/bootstrap_soak.py --joins 100000 --lookups-per-join 10 --every 10000

The node is the real one: its swarm, peerstore, DHT tables, provider records, gossip and address book. Only the connections are
not: a peer of the crowd is a few bytes in memory that answers what the node asks, without sockets, Noise or yamux. Time is trio's
virtual clock, which `time.time` follows, so that expiry happens as it would. Each peer connects, is identified, subscribes to a
topic of gossip, announces that it provides a run, asks the DHT, and leaves. Printed: the resident set, the number of Python
objects, and the containers reachable from the node that have grown since all tables were full.
"""

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import trio
import trio.testing
import varint
from libp2p.abc import ConnectionType, IMuxedConn, IMuxedStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset
from multiaddr import Multiaddr

from legion_p2p.core.identity import Identity
from legion_p2p.core.relay_ledger import DEFAULT_RELAY, parse_relay
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.dht import multihash_of
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.patches import KAD_PROTOCOL

AS_BOOTSTRAP = NetConfig(relay=parse_relay(DEFAULT_RELAY), relay_unproven=True)
GREETING = b"/multistream/1.0.0\n"
GOSSIP = b"/meshsub/1.1.0"
IDENTIFY = b"/ipfs/id/1.0.0"
KAD = KAD_PROTOCOL.encode()
PROTOCOLS = (IDENTIFY.decode(), GOSSIP.decode(), KAD.decode())


def framed(data: bytes) -> bytes:
    return varint.encode(len(data)) + data


class Stream(IMuxedStream):
    """The node's end of a stream to a peer of the crowd; what the node writes goes to `wrote`."""

    def __init__(self, conn: "Connection", wrote: Callable[["Stream", bytes], None], waiting: bytes = b"") -> None:
        self.muxed_conn = conn
        self.is_initiator = not waiting  # whoever opens a stream speaks first
        self.is_kad = False
        self._wrote = wrote
        self._unread = bytearray(waiting)
        self._arrived = trio.Event()
        self._at_end = False
        self._is_reset = False

    def arrive(self, data: bytes) -> None:
        self._unread += data
        self._arrived.set()

    def end(self) -> None:
        self._at_end = True
        self._arrived.set()

    async def read(self, n: int | None = None) -> bytes:
        while not self._unread:
            if self._is_reset:
                raise MuxedStreamReset
            if self._at_end:
                raise MuxedStreamEOF
            self._arrived = trio.Event()
            await self._arrived.wait()
        data = bytes(self._unread[:n])
        del self._unread[: len(data)]
        return data

    async def write(self, data: bytes) -> None:
        if self._is_reset or self.muxed_conn.is_closed:
            raise MuxedStreamClosed
        self._wrote(self, data)

    async def close(self) -> None:
        self.end()

    async def reset(self) -> None:
        self._is_reset = True
        self.end()

    def set_deadline(self, ttl: int) -> None:
        raise AssertionError("the soak's streams have no deadlines")

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    async def __aenter__(self) -> "Stream":
        return self


class Connection(IMuxedConn):
    """A connection of the node to one peer of the crowd."""

    def __init__(self, peer: "Visitor") -> None:
        self.peer_id = peer.id
        self.event_started = trio.Event()
        self._peer = peer
        self._opened, self._accepted = trio.open_memory_channel[Stream](16)
        self._streams: list[Stream] = []
        self._is_closed = False

    is_initiator = False
    is_established = True

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def start(self) -> None:
        self.event_started.set()

    async def open_stream(self) -> Stream:
        """The node opens one."""
        if self._is_closed:
            raise MuxedConnUnavailable
        stream = Stream(self, self._peer.answer)
        self._streams.append(stream)
        return stream

    async def accept_stream(self) -> Stream:
        try:
            return await self._accepted.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as gone:
            raise MuxedConnUnavailable from gone

    def visit(self, protocol: bytes, said: bytes, wrote: Callable[[Stream, bytes], None]) -> Stream:
        """The peer opens one and says something on it."""
        stream = Stream(self, wrote, framed(GREETING) + framed(protocol + b"\n") + said)
        self._streams.append(stream)
        self._opened.send_nowait(stream)
        return stream

    async def close(self) -> None:
        self._is_closed = True
        for stream in self._streams:
            stream.end()
        self._streams.clear()
        self._opened.close()

    def get_remote_address(self) -> tuple[str, int]:
        return self._peer.end

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


class Visitor:
    """A peer of the crowd: what it says of itself, and how it answers."""

    def __init__(self, number: int) -> None:
        identity = Identity.generate()
        keys = create_new_key_pair(identity.seed)
        self.id = ID.from_base58(identity.peer_id)
        # the /24 changes with every peer, as in a crowd from everywhere
        self.end = (f"{11 + number % 80}.{number // 80 % 250}.{number // 20000 % 250}.1", 4710)
        self.address = Multiaddr(f"/ip4/{self.end[0]}/tcp/{self.end[1]}")
        self.record = create_signed_peer_record(self.id, [self.address], keys.private_key).marshal_envelope()
        about = Identify(
            protocol_version="ipfs/0.1.0", agent_version="crowd", public_key=keys.public_key.serialize(), protocols=PROTOCOLS,
            listen_addrs=[self.address.to_bytes()], signedPeerRecord=self.record,
        )  # fmt: skip
        self._about = framed(about.SerializeToString())
        self.n_answers = self._n_frames = 0
        self._said = bytearray()

    def answer(self, stream: Stream, data: bytes) -> None:
        """What the node wrote on a stream that it opened: the greeting and a protocol, and then what that speaks."""
        if IDENTIFY in data:
            stream.arrive(framed(GREETING) + framed(IDENTIFY + b"\n") + self._about)
            stream.end()
        elif GOSSIP in data:
            stream.arrive(framed(GREETING) + framed(GOSSIP + b"\n"))
        elif KAD in data:
            stream.arrive(framed(GREETING) + framed(KAD + b"\n"))
            stream.is_kad = True
        elif stream.is_kad:
            stream.arrive(self._no_closer_peer(data))
        elif data.endswith(b"\n"):
            stream.arrive(framed(GREETING) + framed(b"na\n"))

    def _no_closer_peer(self, data: bytes) -> bytes:
        asked = Message()
        asked.ParseFromString(data[len(varint.encode(varint.decode_bytes(data))) :])
        return framed(Message(type=asked.type, key=asked.key).SerializeToString())

    def subscribes(self, topic: str) -> bytes:
        return framed(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)]).SerializeToString())

    def provides(self, key: bytes) -> bytes:
        message = Message(type=Message.MessageType.ADD_PROVIDER, key=key, senderRecord=self.record)
        message.providerPeers.add(id=self.id.to_bytes(), addrs=[self.address.to_bytes()])
        return framed(message.SerializeToString())

    def asks(self, kind: int, key: bytes) -> bytes:
        return framed(Message(type=kind, key=key).SerializeToString())

    def answered(self, stream: Stream, data: bytes) -> None:
        """Count the answers of the DHT, each behind its length; the first two frames agree on the protocol."""
        self._said += data
        while self._said:
            n_bytes = varint.decode_bytes(bytes(self._said[:10]))
            end = len(varint.encode(n_bytes)) + n_bytes
            if len(self._said) < end:
                return
            del self._said[:end]
            self._n_frames += 1
            self.n_answers = max(0, self._n_frames - 2)


async def unreachable(address: Multiaddr, peer: ID) -> None:
    """In place of a dial: a peer that has gone does not answer."""
    raise SwarmException(f"{peer} is gone")


class Crowd:
    """Peers that come to a node, ask, and go again; at most `n_present` at a time."""

    def __init__(self, network: Libp2pNetwork, n_present: int, n_lookups: int) -> None:
        self.n_joined = self.n_asked = self.n_answers = 0
        self._swarm: Any = network._host.get_network()
        self._swarm.dial_addr = unreachable  # the crowd's addresses are somebody else's, perhaps
        self._present: list[tuple[Visitor, Connection]] = []
        self._n_present = n_present
        self._n_lookups = n_lookups
        self._random = random.Random(0)

    async def join(self, pause_s: float) -> None:
        """One comes, and one that has been there for long goes."""
        visitor = Visitor(self.n_joined)
        connection = Connection(visitor)
        await self._swarm.add_conn(connection, "inbound")
        run = f"run {self._random.randrange(40)}"
        connection.visit(GOSSIP, visitor.subscribes(run), lambda stream, data: None)
        said = [visitor.provides(multihash_of(run)), visitor.provides(multihash_of(f"shard {self.n_joined % 4000} of {run}"))]
        for at in range(self._n_lookups):
            wanted = multihash_of(f"run {self._random.randrange(40)}") if at % 2 else self._random.randbytes(34)
            kind = Message.MessageType.GET_PROVIDERS if at % 2 else Message.MessageType.FIND_NODE
            said.append(visitor.asks(kind, wanted))
        asking = connection.visit(KAD, b"".join(said), visitor.answered)
        self.n_joined += 1
        self._present.append((visitor, connection))
        await trio.sleep(pause_s)
        asking.end()
        if len(self._present) > self._n_present:
            gone, last = self._present.pop(self._random.randrange(len(self._present)))
            self.n_asked += self._n_lookups + 2
            self.n_answers += gone.n_answers
            await last.close()


async def unwatched(_: NetworkChanges) -> None:
    await trio.sleep_forever()


@contextmanager
def virtual_time(speed: float = 1.0) -> Iterator[trio.testing.MockClock]:
    """A clock that jumps, which `time.time` follows, `speed` times as fast: libp2p's tables look at that one.

    The watch over this machine's own clocks and addresses does not run: by those, it would have slept.
    """
    clock, began, real = trio.testing.MockClock(autojump_threshold=0.0), time.time(), time.time
    watch = NetworkChanges.watch_forever
    time.time = lambda: began + speed * clock.current_time()
    NetworkChanges.watch_forever = unwatched  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        time.time = real
        NetworkChanges.watch_forever = watch  # type: ignore[method-assign]


def sizes(root: object) -> dict[str, int]:
    """How many elements each container has that can be reached from `root`, by the way that leads there."""
    found: dict[str, int] = {}
    seen = {id(root)}
    level: list[tuple[str, Any]] = [(type(root).__name__, root)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, value in level:
            inside: list[tuple[str, Any]] = []
            if isinstance(value, dict):
                found[path] = found.get(path, 0) + len(value)
                inside = [(f"{path}[]", each) for pair in value.items() for each in pair]
            elif isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ in ("deque", "OrderedDict"):
                found[path] = found.get(path, 0) + len(value)
                inside = [(f"{path}[]", each) for each in value]
            elif type(value).__module__.startswith(("libp2p.", "legion_p2p.")):
                names = vars(value) if hasattr(value, "__dict__") else {}
                inside = [(f"{path}.{name}", each) for name, each in names.items()]
            for name, each in inside:
                if id(each) not in seen and not isinstance(each, (str, bytes, int, float, bool, type(None), type)):
                    seen.add(id(each))
                    below.append((name, each))
        level = below
    return found


def grown(before: dict[str, int], now: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Containers that are larger than they were by more than a tenth and 50 elements."""
    return {path: (before.get(path, 0), n) for path, n in now.items() if n > 1.1 * before.get(path, 0) + 50}


async def soak(args: argparse.Namespace) -> None:
    process = psutil.Process(os.getpid())
    async with open_network(Identity.generate(), listen=(), config=AS_BOOTSTRAP) as network:
        crowd = Crowd(network, args.present, args.lookups_per_join)
        warm: dict[str, int] = {}
        while crowd.n_joined < args.joins:
            await crowd.join(args.pause)
            if crowd.n_joined % args.every == 0:
                gc.collect()
                now = sizes(network)
                if not warm and crowd.n_joined >= args.warm:
                    warm = now
                row = {
                    "joins": crowd.n_joined,
                    "answers": crowd.n_answers,
                    "unanswered": crowd.n_asked - crowd.n_answers,
                    "virtual_h": round(trio.current_time() / 3600, 2),
                    "rss_mb": round(process.memory_info().rss / 1e6, 1),
                    "objects": len(gc.get_objects()),
                    "cpu_s": round(sum(process.cpu_times()[:2]), 1),
                    "grown": grown(warm or now, now),
                }
                print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joins", type=int, default=20_000, help="peers that come and go")
    parser.add_argument("--lookups-per-join", type=int, default=10)
    parser.add_argument("--every", type=int, default=2000, help="joins between two rows")
    parser.add_argument("--warm", type=int, default=10_000, help="joins after which every table is as full as it gets")
    parser.add_argument("--pause", type=float, default=2.0, help="virtual seconds between two joins")
    parser.add_argument("--present", type=int, default=64, help="peers that are connected at a time")
    args = parser.parse_args()
    with virtual_time() as clock:
        trio.run(soak, args, clock=clock)


if __name__ == "__main__":
    main()
