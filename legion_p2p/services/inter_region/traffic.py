"""The messenger as the services use it: it also counts how many bytes stay in the region, and how many leave it."""

import math
import time
from collections.abc import Callable

import msgspec

from legion_p2p.core.contact import Bandwidth, Handler, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.shard_traffic import ShardTraffic
from legion_p2p.core.spliced import Bytes, start_of
from legion_p2p.core.traffic_ledger import TrafficLedger, class_of
from legion_p2p.services.ports import Messenger


class RegionTraffic(msgspec.Struct):
    """Bytes of the bodies of requests and replies, both ways; a request counts when it has been answered."""

    in_region: int = 0
    across: int = 0


class RegionalMessenger:
    """See services.ports.Messenger: everything is passed on."""

    def __init__(
        self, messenger: Messenger, is_across: Callable[[PeerId], bool], wall_time: Callable[[], float] = time.time
    ) -> None:
        """`is_across`: whether a peer is in another region now."""
        self.peer_id = messenger.peer_id
        self.regional = RegionTraffic()
        self.books = TrafficLedger()
        self.shards = ShardTraffic()
        self._messenger = messenger
        self._is_across = is_across
        self._wall_time = wall_time

    def serve(self, handler: Handler, longest: float = math.inf) -> None:
        async def counted(peer: PeerId, body: bytes) -> Bytes | ThrottledReply[Bytes]:
            self.shards.note_received(body, len(body))
            n_sent = 0
            try:
                reply = await handler(peer, body)
                answer = reply.reply if isinstance(reply, ThrottledReply) else reply
                n_sent = len(answer)
                self.shards.note_sent(start_of(answer), n_sent)
                return reply
            finally:
                self._count(peer, class_of(body), n_sent, len(body))

        self._messenger.serve(counted, longest)

    async def request(self, peer: PeerId, body: Bytes, priority: Priority = Priority.CONTROL) -> bytes:
        reply = await self._messenger.request(peer, body, priority)
        # not before: what waits for its turn has not been sent, and what broke off was sent in part
        self._count(peer, class_of(start_of(body)), len(body), len(reply))
        self.shards.note_sent(start_of(body), len(body))
        self.shards.note_received(reply, len(reply))
        return reply

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._messenger.add_addresses(peer, addresses)

    def addresses(self) -> tuple[str, ...]:
        return self._messenger.addresses()

    def connected(self) -> frozenset[PeerId]:
        return self._messenger.connected()

    def rtt_s(self, peer: PeerId) -> float | None:
        return self._messenger.rtt_s(peer)

    def traffic(self) -> Traffic:
        return self._messenger.traffic()

    def bandwidth(self) -> Bandwidth:
        return self._messenger.bandwidth()

    def report(self, peer: PeerId, misbehaviour: str) -> None:
        self._messenger.report(peer, misbehaviour)

    def _count(self, peer: PeerId, kind: str, sent_bytes: int, received_bytes: int) -> None:
        self.books.moved(peer, kind, sent_bytes, received_bytes, self._wall_time())
        if self._is_across(peer):
            self.regional.across += sent_bytes + received_bytes
        else:
            self.regional.in_region += sent_bytes + received_bytes
