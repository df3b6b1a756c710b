"""Publish and subscribe: the Gossip of services.ports, over gossipsub.

Messages are signed by their publisher, of at most MAX_GOSSIP_BYTES, and at most MAX_GOSSIP_RATE_HZ per topic from one
origin. Any number of subscribers share one gossipsub subscription; each has a buffer of its own that drops the oldest.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.subscription import TrioSubscriptionAPI

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UsageError
from legion_p2p.net.buffer import Buffer
from legion_p2p.net.limits import (
    MAX_GOSSIP_BYTES,
    MAX_GOSSIP_RATE_HZ,
    MAX_KNOWN_PEERS,
    MAX_TOPIC_CHARS,
    NetConfig,
)

MAX_RPC_BYTES = 1 << 20  # several messages and control entries travel in one
MAX_TOPICS_PER_PEER = 64
RATE_WINDOW_S = 4.0
REGISTER_S = 3.0  # a connected peer without a gossip stream for so long is tried again
GREET_TICK_S = 0.5
GREET_AGAIN_S = (1.0, 4.0, 20.0)  # pauses between telling a peer what is subscribed to; some 100 bytes each time

log = logging.getLogger("legion_p2p.net")


def make_pubsub(host: BasicHost, config: NetConfig) -> tuple[Pubsub, GossipSub]:
    """libp2p's two services. They must run before the first connection is made, or nothing is delivered over it."""
    router = GossipSub(
        # 1.1 is enough, and the later ones add a message for each message
        protocols=[PROTOCOL_ID_V11],
        # each message comes from every neighbour in the mesh, and costs 1 ms of CPU each time: so few, and what they lose is
        # made good by its gossip about ids, and by exchanges of members
        degree=4,
        degree_low=3,
        degree_high=6,
        heartbeat_initial_delay=0.1,
        heartbeat_interval=config.gossip_heartbeat_s,  # type: ignore[arg-type]
        # a peer that comes back is let in again soon
        prune_back_off=5,
        unsubscribe_back_off=2,
        # limits what a forwarder passes on, of all origins together: 200 peers that announce every 2 s exceed its default
        # tenfold. The limit per origin, below, is the one that a flooder cannot get around.
        spam_protection_enabled=False,
        # both act on IP addresses, which peers behind one NAT or on one machine share
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )
    pubsub = Pubsub(
        host,
        router,
        strict_signing=True,
        max_subscriptions_per_rpc=MAX_TOPICS_PER_PEER,
        max_subscriptions_per_peer=MAX_TOPICS_PER_PEER,
        max_inbound_rpc_size=MAX_RPC_BYTES,
    )
    # libp2p counts from the second it started: a peer that sent more than one message per second and restarts would repeat
    # numbers, and its messages would be taken for ones seen already
    pubsub.counter = time.time_ns()
    return pubsub, router


class Libp2pGossip:
    """See services.ports.Gossip."""

    def __init__(self, pubsub: Pubsub, nursery: trio.Nursery, report: Callable[[PeerId, str], None]) -> None:
        self._pubsub = pubsub
        self._nursery = nursery
        self._report = report
        self._me = pubsub.my_id.to_bytes()
        self._topics: dict[str, _Topic] = {}
        self._greetings: dict[ID, _Greeting] = {}
        self._changing = trio.Lock()

    async def publish(self, topic: str, data: bytes) -> None:
        _check(topic)
        if len(data) > MAX_GOSSIP_BYTES:
            raise UsageError(f"message of {len(data)} bytes, limit for gossip is {MAX_GOSSIP_BYTES}")
        await self._pubsub.publish(topic, data)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        buffer = Buffer()
        try:
            async with self.listen(topic, buffer.put):
                yield buffer.receive
        finally:
            buffer.close()

    @asynccontextmanager
    async def listen(
        self, topic: str, heard: Callable[[bytes], None], is_valid: Callable[[bytes], bool] = lambda _: True
    ) -> AsyncIterator[None]:
        _check(topic)
        await self._join(topic, heard, is_valid)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._leave(topic, heard, is_valid)

    def greet_again(self) -> None:
        """Tell all peers soon what is subscribed to: connections were lost, and what they knew with them."""
        self._greetings.clear()

    async def keep_registered(self) -> None:
        """Repair what libp2p loses, until cancelled.

        It announces a topic to the peers that it has a stream to, and greets a new peer with the topics it has: a topic that is
        subscribed to between the making of the greeting and the end of its sending is never announced to that peer. When its own
        stream to a peer breaks it forgets what that peer subscribed to, which the peer never repeats. And after one attempt that
        failed in the wrong way it never opens a stream to a peer again. So: greet again soon, and then from time to time.
        """
        greetings = self._greetings
        unregistered: dict[ID, float] = {}
        while True:
            await trio.sleep(GREET_TICK_S)
            now = trio.current_time()
            peers = self._pubsub.peers
            for gone in [peer for peer in greetings if peer not in peers]:
                del greetings[gone]
            for peer, stream in tuple(peers.items()):
                greeting = greetings.get(peer)
                if greeting is None or greeting.stream is not stream:
                    greeting = greetings[peer] = _Greeting(stream)
                if greeting.is_due(now) and peer in self._pubsub.peer_queues:
                    self._pubsub.peer_queues[peer].push(self._pubsub.get_hello_packet())
            missing = {peer for peer in self._pubsub.host.get_connected_peers() if peer not in peers}
            unregistered = {peer: since for peer, since in unregistered.items() if peer in missing}
            for peer in missing:
                if now - unregistered.setdefault(peer, now) > REGISTER_S:
                    unregistered[peer] = now
                    self._pubsub._schedule_peer_stream_retry(peer)

    async def _join(self, topic: str, heard: Callable[[bytes], None], is_valid: Callable[[bytes], bool]) -> None:
        async with self._changing:
            entry = self._topics.get(topic)
            if entry is None:
                rates, checks = _Rates(), [is_valid]  # before anything of the topic comes
                self._pubsub.set_topic_validator(topic, lambda peer, message: self._valid(rates, checks, peer, message), False)
                subscription = await self._pubsub.subscribe(topic)
                assert isinstance(subscription, TrioSubscriptionAPI)
                entry = self._topics[topic] = _Topic(subscription.receive_channel, checks)
                self._nursery.start_soon(entry.pump, self._me)
            else:
                entry.checks.append(is_valid)
            entry.listeners.append(heard)

    async def _leave(self, topic: str, heard: Callable[[bytes], None], is_valid: Callable[[bytes], bool]) -> None:
        async with self._changing:
            entry = self._topics[topic]
            entry.listeners.remove(heard)
            entry.checks.remove(is_valid)
            if not entry.listeners:
                del self._topics[topic]
                entry.scope.cancel()
                self._pubsub.remove_topic_validator(topic)
                # leaving announces it to all peers: none of them may hold up this one
                with trio.move_on_after(1.0):
                    await self._pubsub.unsubscribe(topic)

    def _valid(self, rates: "_Rates", checks: Sequence[Callable[[bytes], bool]], forwarder: ID, message: rpc_pb2.Message) -> bool:
        if message.from_id == self._me:
            return True
        if len(message.data) > MAX_GOSSIP_BYTES:
            self._report(PeerId(str(forwarder)), f"forwarded gossip of {len(message.data)} bytes")
            return False
        # the origin signed it, so the forwarder is not to blame for their number
        if not rates.admit(message.from_id, trio.current_time()):
            return False
        if not all(is_valid(message.data) for is_valid in checks):
            self._report(
                PeerId(str(forwarder)), f"forwarded gossip of {len(message.data)} bytes that does not belong to its topic"
            )
            return False
        return True


class _Greeting:
    """When to tell a peer, over one stream, what is subscribed to here."""

    def __init__(self, stream: object) -> None:
        self.stream = stream
        self._n_sent = 0
        self._due_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time; if so, the next time is further off."""
        if now < self._due_at:
            return False
        self._due_at = now + GREET_AGAIN_S[min(self._n_sent, len(GREET_AGAIN_S) - 1)]
        self._n_sent += 1
        return True


class _Topic:
    """One gossipsub subscription and its readers here."""

    def __init__(self, source: trio.MemoryReceiveChannel[rpc_pb2.Message], checks: list[Callable[[bytes], bool]]) -> None:
        self._source = source
        self.listeners: list[Callable[[bytes], None]] = []
        self.checks = checks
        self.scope = trio.CancelScope()

    async def pump(self, me: bytes) -> None:
        with self.scope:
            async for message in self._source:
                if message.from_id != me:
                    for heard in tuple(self.listeners):
                        heard(message.data)


class _Rates:
    """How many messages each origin sent in the current window."""

    def __init__(self) -> None:
        self._counts: BoundedMap[bytes, tuple[float, int]] = BoundedMap(MAX_KNOWN_PEERS)

    def admit(self, origin: bytes, now: float) -> bool:
        began, count = self._counts.get(origin, (now, 0))
        if now - began >= RATE_WINDOW_S:
            began, count = now, 0
        self._counts[origin] = (began, count + 1)
        return count < MAX_GOSSIP_RATE_HZ * RATE_WINDOW_S


def _check(topic: str) -> None:
    if not 0 < len(topic) <= MAX_TOPIC_CHARS:
        raise UsageError(f"topic of {len(topic)} characters, 1 to {MAX_TOPIC_CHARS} are allowed")
