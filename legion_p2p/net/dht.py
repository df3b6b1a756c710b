"""libp2p's Kademlia, driven from here.

Its server side (answering others) is used as it is; its client side is not: a lookup of libp2p's makes two requests where one
does, its `provide` succeeds even if all nodes refused, its `find_providers` answers from a cache of 48 hours. Here a lookup asks
for closer peers and for providers in one message, records are sent in batches, one stream per node, and count only when
acknowledged.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import cast

import trio
import varint
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStore, env_to_send_in_RPC
from libp2p.records.validator import NamespacedValidator
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.limits import MAX_PROVIDER_RATE, NetConfig
from legion_p2p.net.patches import KAD_PROTOCOL, replace_attributes
from legion_p2p.net.providers import Providers
from legion_p2p.net.tally import Tally

RPC_TIMEOUT_S = 6.0  # one question to one node; a lookup goes on with the others meanwhile
ALPHA = 4  # questions in flight per lookup: the paper's 3, and one that may be lost
MAX_DOWN = 10 * 20  # such nodes that are remembered: ten buckets of them
DOWN_S = 60.0  # a node that did not answer is not asked because others name it, for so long
STALE_S = 600.0  # after which a node that is not connected is named to nobody; each looks around every 300 s
K = 20  # the paper's; also the size of a bucket in libp2p
MAX_INBOUND_QUERIES = 64  # libp2p resets what comes beyond 12, which 16 peers that start together exceed
MAX_PEERS_PER_SUBNET = 8  # of 20 in a bucket; libp2p's 2 of a /24 breaks a lab or a cloud, where many peers share one
MAX_ANSWER_BYTES = 1 << 18
MAX_NAMES = 4096  # of peers that are remembered as text

log = logging.getLogger("legion_p2p.net")


class Dht:
    """Finding the nodes closest to a key, and what they hold."""

    def __init__(self, host: BasicHost, config: NetConfig, book: AddressBook, tally: Tally) -> None:
        self._host = host
        self._tally = tally
        self._config = config
        self._book = book
        self._me = host.get_id()
        self._down_until: BoundedMap[ID, float] = BoundedMap(MAX_DOWN)
        self.kad = KadDHT(
            host,
            DHTMode.SERVER if config.dht_server else DHTMode.CLIENT,
            # no value is accepted: no stranger stores megabytes here
            validator=NamespacedValidator({}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            max_peers_per_subnet=MAX_PEERS_PER_SUBNET,
        )
        self.kad._inbound_limiter.total_tokens = MAX_INBOUND_QUERIES
        self.kad._provider_rate_max = MAX_PROVIDER_RATE
        self.providers = self.kad.provider_store = Providers(host, config.provider_lifetime_s)
        replace_attributes(self.kad, _add_closer_peers_to_response=self._name_closer_peers)
        if config.dht_server:
            host.set_stream_handler(KAD_PROTOCOL, self._answer)

    async def _answer(self, stream: INetStream) -> None:
        self._tally.n_questions += 1
        await self.kad.handle_stream(stream)

    def _name_closer_peers(self, answer: Message, closest: list[ID], exclude_peer_id: ID | None = None) -> None:
        """The last that libp2p does to an answer: who is told of whom is noted here.

        libp2p's own method looks each of the 20 peers up eight times, which is half of what an answer costs.
        """
        store = cast(PeerStore, self._host.get_peerstore())
        connected = self._host.get_network().connections
        for peer in closest:
            if peer == exclude_peer_id:
                continue
            known = store.peer_data_map.get(peer)
            addresses = () if known is None or known.is_expired() else known.get_addrs()
            entry = answer.closerPeers.add(id=peer.to_bytes(), addrs=[address.to_bytes() for address in addresses])
            if peer in connected:
                entry.connection = Message.ConnectionType.CONNECTED
            else:
                entry.connection = Message.ConnectionType.CAN_CONNECT if addresses else Message.ConnectionType.NOT_CONNECTED
            record = store.peer_record_map.get(peer) if addresses else None
            if record is not None:
                entry.signedRecord = record.envelope.marshal_envelope()
        if exclude_peer_id is None or answer.type != Message.MessageType.GET_PROVIDERS:
            return  # nodes that look around ask for closer ones all the time
        asker = str(exclude_peer_id)
        named = dict.fromkeys(_name_of(peer.id) for peer in (*answer.providerPeers, *answer.closerPeers))
        named.pop(asker, None)
        if named:
            self._tally.introduced(PeerId(asker), [PeerId(peer) for peer in named])

    def size(self) -> int:
        """Nodes in the routing table."""
        return self.kad.routing_table.size()

    def serve(self, serving: bool) -> None:
        """Answer others, or only ask: a peer that cannot be dialed only makes lookups of others longer."""
        if serving and self.kad.mode is DHTMode.CLIENT:
            self.kad.mode = DHTMode.SERVER
            self._host.set_stream_handler(KAD_PROTOCOL, self._answer)
        elif not serving and self.kad.mode is DHTMode.SERVER:
            self.kad.mode = DHTMode.CLIENT
            self._host.remove_stream_handler(KAD_PROTOCOL)

    def drop_stale(self) -> None:
        """Forget the nodes that are not connected and have said nothing for long.

        libp2p asks the oldest node of a bucket only when there are 256 buckets, and keeps 5120 nodes until then: a node that runs
        for months would name the dead, and take 10 ms for each question.
        """
        connected = set(self._host.get_connected_peers())
        oldest = time.time() - STALE_S
        for bucket in self.kad.routing_table.buckets:
            for peer, (_, seen_at) in tuple(bucket.peers.items()):
                if peer in connected:
                    bucket.refresh_peer_last_seen(peer)
                elif seen_at < oldest:
                    bucket.remove_peer(peer)

    def own_addresses(self) -> Sequence[Multiaddr]:
        return self._host.get_addrs()

    def closest_known(self, key: bytes, n: int) -> list[ID]:
        """The nodes closest to `key` as far as known here, without asking anybody."""
        known = self.kad.routing_table.find_local_closest_peers(key, n)
        return [peer for peer in known if peer != self._me]

    async def learn(self, peer: ID) -> bool:
        """Add a connected peer to the routing table, if it speaks our protocol; False if it is not known yet whether it does."""
        try:
            protocols = self._host.get_peerstore().get_protocols(peer)
        except Exception:  # PeerStoreError: identify has not run yet
            return False
        if not protocols:
            return False
        if KAD_PROTOCOL in protocols:
            await self.remember(peer)
        return True

    async def lookup(
        self,
        key: bytes,
        n_closest: int,
        heard: Callable[[list[PeerId]], None] | None = None,
        n_wanted: Callable[[], int] | None = None,
    ) -> list[ID]:
        """Ask our way to the `n_closest` nodes closest to `key`; those of them that answered.

        With `heard`, ask for providers too, and tell it which were named. `n_wanted` says how many nodes to ask as things stand.
        """
        question = Message()
        question.type = Message.MessageType.FIND_NODE if heard is None else Message.MessageType.GET_PROVIDERS
        question.key = key
        candidates = self.closest_known(key, K) or self._connected()
        asked: set[ID] = set()
        answered: list[ID] = []
        n_asking = 0
        progress = Notify()

        async def ask(peer: ID) -> None:
            nonlocal n_asking, candidates
            try:
                answers = await self.ask(peer, [question])
                if answers:
                    answered.append(peer)
                    await self.remember(peer)
                    closer = [peer for peer in self._closer_peers(answers[0]) if not self._is_down(peer)]
                    candidates = sort_peer_ids_by_distance(key, list(dict.fromkeys([*candidates, *closer])))[: 3 * K]
                    for named in closer:
                        # hearsay is good enough while the table is small: without it, knowing the others takes asking each
                        if self.size() < K:
                            await self.remember(named)
                    if heard is not None:
                        heard(self._named_providers(answers[0]))
            finally:
                n_asking -= 1
                progress.notify()

        async with trio.open_nursery() as nursery:
            while True:
                n = n_closest if n_wanted is None else n_wanted()
                closest = [peer for peer in candidates if peer not in asked or peer in answered][:n]
                waiting = [peer for peer in closest if peer not in asked]
                if waiting and n_asking < ALPHA:
                    n_asking += 1
                    asked.add(waiting[0])
                    nursery.start_soon(ask, waiting[0])
                    continue
                if not n_asking:
                    break
                await progress.wait()
        return sort_peer_ids_by_distance(key, answered)[:n_closest] if answered else []

    async def announce(self, peer: ID, keys: Iterable[bytes]) -> int:
        """Store at `peer` that this peer provides `keys`; how many of them it acknowledged."""
        record, _ = env_to_send_in_RPC(self._host)
        addresses = [address.to_bytes() for address in self._host.get_addrs()]
        messages: list[Message] = []
        for key in keys:
            message = Message()
            message.type = Message.MessageType.ADD_PROVIDER
            message.key = key
            if not messages:
                message.senderRecord = record
            provider = message.providerPeers.add()
            provider.id = self._me.to_bytes()
            provider.addrs.extend(addresses)
            messages.append(message)
        return len(await self.ask(peer, messages))

    async def ask(self, peer: ID, questions: Sequence[Message]) -> list[Message]:
        """Put questions to one node, on one stream; the answers, fewer if it fails in between."""
        answers: list[Message] = []
        stream: INetStream | None = None
        try:
            with trio.move_on_after(RPC_TIMEOUT_S + 0.02 * len(questions)):
                try:
                    stream = await self._host.new_stream(peer, [KAD_PROTOCOL])
                    for question in questions:
                        if not answers and not question.senderRecord:
                            question.senderRecord = env_to_send_in_RPC(self._host)[0]
                        packed = question.SerializeToString()
                        await stream.write(varint.encode(len(packed)) + packed)
                        answer = Message()
                        answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES))
                        if answer.type != question.type:
                            raise ValueError(f"answer of type {answer.type} to a question of type {question.type}")
                        answers.append(answer)
                except Exception as failed:
                    log.debug("DHT node %s: %r", peer, failed)
        finally:  # also where the lookup has found enough elsewhere
            if stream is not None:
                await _end(stream, in_order=len(answers) == len(questions))
        if not answers:
            self.kad.routing_table.remove_peer(peer)
            self._down_until[peer] = trio.current_time() + DOWN_S
        return answers

    def _is_down(self, peer: ID) -> bool:
        return self._down_until.get(peer, 0.0) > trio.current_time()

    def _closer_peers(self, answer: Message) -> list[ID]:
        found = []
        for entry in answer.closerPeers[:K]:
            peer = self._note(entry)
            if peer is not None:
                found.append(peer)
        return found

    def _named_providers(self, answer: Message) -> list[PeerId]:
        return [PeerId(str(peer)) for entry in answer.providerPeers[: 2 * K] if (peer := self._note(entry)) is not None]

    def _note(self, entry: Message.Peer) -> ID | None:
        """Remember an entry's addresses, unproven: the handshake of a dial shows whether they are that peer's."""
        try:
            peer = ID(entry.id)
            if peer == self._me:
                return None
            self._book.hear(PeerId(str(peer)), [str(Multiaddr(raw)) for raw in entry.addrs[:8]])
        except Exception as bad:  # whatever a stranger put there
            log.debug("an entry of a DHT answer: %r", bad)
            return None
        return peer

    def _connected(self) -> list[ID]:
        return [peer for peer in self._host.get_connected_peers() if peer != self._me][:K]

    async def remember(self, peer: ID) -> None:
        """Put a peer that speaks our protocol into the routing table, if there is room."""
        addresses = [Multiaddr(address) for address in self._book.of(PeerId(str(peer)))]
        info = PeerInfo(peer, addresses) if addresses else peer
        await self.kad.routing_table.add_peer(info, skip_server_mode_check=True)


async def _end(stream: INetStream, *, in_order: bool) -> None:
    with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
        try:
            await (stream.close() if in_order else stream.reset())
        except Exception as failed:
            log.debug("closing a DHT stream: %r", failed)


@lru_cache(MAX_NAMES)
def _name_of(raw: bytes) -> str:
    """An answer names forty peers, mostly those of the answer before; to write one in base58 takes 40 us."""
    return str(ID(raw))


def multihash_of(key: str) -> bytes:
    """Where a key of ours lies in the DHT's space: sha2-256, as a multihash."""
    return b"\x12\x20" + hashlib.sha256(b"legion:" + key.encode()).digest()
