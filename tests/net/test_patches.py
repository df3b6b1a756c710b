"""What is changed in libp2p is really changed, in the version that is installed."""

import hashlib
import random
import sys
from importlib.metadata import version
from typing import cast

import pytest
import trio
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.routing_table import RoutingTable, peer_id_to_key
from libp2p.kad_dht.utils import xor_distance
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerRecordState, PeerStore, env_to_send_in_RPC
from libp2p.pubsub import pubsub
from libp2p.pubsub import utils as pubsub_utils
from libp2p.pubsub.pb.rpc_pb2 import RPC
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from legion_p2p.net.patches import KAD_PROTOCOL, ZERO_WINDOW_S
from tests.net.conftest import eventually, opened


def test_the_version_is_the_one_that_was_studied():
    assert version("libp2p") == "0.8.1"


def test_no_module_of_kademlia_has_the_public_protocol_id():
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        assert module.PROTOCOL_ID == KAD_PROTOCOL


async def test_the_public_dht_is_not_spoken_on_the_wire():
    async with opened() as a, opened(of=a) as b:
        peer = ID.from_base58(a.peer_id)

        spoken = await b._host.send_command(peer, "ls")

        assert KAD_PROTOCOL in spoken
        assert not [protocol for protocol in spoken if "kad" in protocol and protocol != KAD_PROTOCOL]
        with pytest.raises(Exception, match="failed to open a stream"):
            await b._host.new_stream(peer, ["/ipfs/kad/1.0.0"])
        stream = await b._host.new_stream(peer, [KAD_PROTOCOL])
        await stream.close()


async def test_the_nodes_that_are_named_are_the_closest_ones_and_the_closest_first():
    async with opened() as a:
        table = RoutingTable(ID(random.randbytes(34)), a._host, max_peers_per_subnet=None)
        for number in range(300):
            info = PeerInfo(ID(random.randbytes(34)), [Multiaddr(f"/ip4/11.{number % 250}.{number // 250}.1/tcp/1")])
            await table.add_peer(info, skip_server_mode_check=True)
        key = random.randbytes(34)
        target = hashlib.sha256(key).digest()

        named = table.find_local_closest_peers(key, 20)

    assert table.size() > 40
    assert named == sorted(table.get_peer_ids(), key=lambda node: xor_distance(peer_id_to_key(node), target))[:20]


async def test_an_answer_of_the_dht_says_to_which_nodes_there_is_a_connection():
    kinds = Message.ConnectionType
    async with opened() as a, opened(of=a) as b:
        known, unknown = ID(random.randbytes(34)), ID(random.randbytes(34))
        b._host.get_peerstore().add_addrs(known, [Multiaddr("/ip4/127.0.0.1/tcp/1")], 60)

        said = [kad_dht.get_connection_type(b._host, peer) for peer in (ID.from_base58(a.peer_id), known, unknown)]

    assert said == [kinds.CONNECTED, kinds.CAN_CONNECT, kinds.NOT_CONNECTED]


async def test_addresses_that_gossip_repeats_are_checked_once_and_forged_ones_each_time(monkeypatch):
    checked = []
    check = pubsub_utils.consume_envelope
    monkeypatch.setattr(pubsub_utils, "consume_envelope", lambda *args: checked.append(args) or check(*args))
    async with opened() as a, opened(of=a) as b:
        sender = ID.from_base58(b.peer_id)
        message = RPC(senderRecord=env_to_send_in_RPC(b._host)[0])
        forged = RPC(senderRecord=message.senderRecord[:-1] + b"x")
        checked.clear()

        said = [pubsub.maybe_consume_signed_record(message, a._host, sender) for _ in range(3)]
        n_checked = len(checked)
        lies = [pubsub.maybe_consume_signed_record(forged, a._host, sender) for _ in range(2)]
        of_others = pubsub.maybe_consume_signed_record(message, a._host, ID.from_base58(a.peer_id))

    assert said == [True] * 3
    assert n_checked <= 1  # gossip may have brought it before
    assert lies == [False] * 2
    assert not of_others


async def test_only_noise_and_yamux_are_offered():
    async with opened() as a:
        upgrader = a._host.get_network().upgrader

        assert list(upgrader.security_multistream.transports) == ["/noise"]
        assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_libp2p_stays_silent(capfd):
    async with opened() as a, opened(of=a) as b:
        stream = await b._host.new_stream(ID.from_base58(a.peer_id), [KAD_PROTOCOL])
        await stream.write(b"\xff" * 100)
        await b.messenger.request(a.peer_id, b"x")

    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


async def test_nobody_is_dialed_of_libp2ps_own_accord():
    async with opened() as hub, opened(of=hub) as a, opened(of=hub) as b:
        await a._host.get_network().auto_connector.maybe_connect()

        assert b.peer_id not in a.messenger.connected()


async def test_pythons_random_state_is_neither_moved_nor_read():
    async with opened():
        drawing = [
            name for name, module in sys.modules.items() if name.startswith("libp2p") and vars(module).get("random") is random
        ]
    random.seed(0)
    expected = random.random()
    random.seed(0)

    async with opened() as a, opened(of=a) as b:
        await a.discovery.provide("key")
        await b.discovery.find("key")

    assert drawing == []
    assert random.random() == expected


async def test_a_writer_waits_for_a_reader_that_is_slow_for_longer_than_5_s(monkeypatch, autojump_clock):
    frames = []

    class Connection:
        async def _write_frame(self, frame: bytes) -> None:
            frames.append(frame)

    stream = yamux.YamuxStream(2, Connection(), True)
    stream.send_window = 100

    async def read_late() -> None:
        await trio.sleep(30)
        stream.send_window += 1000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_late)
        await stream.write(bytes(range(256)))

    assert b"".join(frame[yamux.HEADER_SIZE :] for frame in frames) == bytes(range(256))
    assert [len(frame) - yamux.HEADER_SIZE for frame in frames] == [100, 156]
    with pytest.raises(MuxedStreamError):
        await stream.write(bytes(2000))
    assert trio.current_time() >= 30 + ZERO_WINDOW_S


async def test_an_answer_names_peers_as_libp2p_does():
    async with opened() as a, opened(of=a) as b, opened(of=a) as c:
        await eventually(lambda: len(a._host.get_peerstore().peer_record_map) >= 2)
        peers = [*(ID.from_base58(other.peer_id) for other in (b, c)), ID(random.randbytes(34))]
        expired = ID(random.randbytes(34))
        a._host.get_peerstore().add_addrs(expired, [Multiaddr("/ip4/127.0.0.1/tcp/1")], 60)
        a._host.get_peerstore().peer_data_map[expired].last_identified -= 100
        theirs, ours = Message(), Message()

        KadDHT._add_closer_peers_to_response(a.discovery.dht.kad, theirs, [*peers, expired], peers[1])
        a.discovery.dht.kad._add_closer_peers_to_response(ours, [*peers, expired], exclude_peer_id=peers[1])

        assert ours == theirs
        assert len(ours.closerPeers) == 3 and ours.closerPeers[0].signedRecord


def test_a_full_store_drops_a_sixteenth_at_once_and_first_those_without_addresses_then_the_expired_then_the_oldest():
    store = PeerStore(max_peers=64)
    peers = [ID(bytes([number]) * 34) for number in range(66)]
    for number, peer in enumerate(peers[:64]):
        store.add_addrs(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{number + 1}")], 60)
    store.peer_data_map[peers[40]].clear_addrs()
    store.peer_data_map[peers[50]].last_identified -= 100

    store.add_addrs(peers[64], [Multiaddr("/ip4/127.0.0.1/tcp/1")], 60)
    dropped = set(peers[:65]) - set(store.peer_data_map)
    store.add_addrs(peers[65], [Multiaddr("/ip4/127.0.0.1/tcp/1")], 60)

    assert dropped == {peers[40], peers[50], peers[0], peers[1], peers[2]}
    assert len(store.peer_data_map) == 61  # nothing more, although it was full a moment ago


def test_of_too_many_records_a_sixteenth_is_dropped_at_once_the_oldest_first():
    store = PeerStore(max_records=32)
    for number in range(33):
        store.peer_record_map[ID(bytes([number]) * 34)] = PeerRecordState(cast(Envelope, None), seq=(number + 7) % 33)

    store._enforce_record_limit()

    assert sorted(state.seq for state in store.peer_record_map.values()) == list(range(3, 33))
