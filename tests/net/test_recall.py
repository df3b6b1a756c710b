"""What a node knows of others, over a restart."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.known_peers import KnownPeer, KnownPeers, Provided, bounded
from legion_p2p.net.dht import Dht, multihash_of
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.recall import SAVE_EVERY_S
from legion_p2p.store.known_peers_file import KnownPeersFile
from tests.net.conftest import eventually, opened

OTHERS = [Identity(bytes([n]) * 32).peer_id for n in range(30)]
NOW = 2_000_000_000.0


async def nobody(*_: object) -> list[ID]:
    """In place of a lookup: nobody who is remembered here can be dialed."""
    return []


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Libp2pNetwork]:
    monkeypatch.setattr(Dht, "lookup", nobody)
    async with opened(listen=()) as network:
        yield network


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)


def known(*at: float, provides: tuple[Provided, ...] = ()) -> KnownPeers:
    return bounded(KnownPeer(str(OTHERS[n]), (f"/ip4/8.8.{n}.8/tcp/4710",), when, provides) for n, when in enumerate(at))


async def test_peers_and_records_of_the_last_time_are_named_to_others_at_once(node: Libp2pNetwork, wall: None) -> None:
    before = known(NOW - 100, provides=(Provided(multihash_of("run"), NOW - 20),))

    await node.recall.take(before, NOW, introduce=True)

    dht = node.discovery.dht
    assert node.discovery._book.of(OTHERS[0]) == ("/ip4/8.8.0.8/tcp/4710",)
    assert [info.peer_id for info in dht.providers.get_providers(multihash_of("run"))] == [ID.from_base58(OTHERS[0])]
    assert dht.closest_known(b"\x12\x20" + bytes(32), 5) == [ID.from_base58(OTHERS[0])]
    assert node.recall.known(NOW) == before


async def test_a_record_whose_time_is_over_is_not_believed_any_more(node: Libp2pNetwork, wall: None) -> None:
    records = (Provided(b"old", NOW - 61), Provided(b"fresh", NOW - 59), Provided(b"made tomorrow", NOW + 86400))

    await node.recall.take(known(NOW, provides=records), NOW, introduce=True)

    held = node.discovery.dht.providers
    assert held.get_providers(b"old") == []
    assert held.get_providers(b"fresh") != []
    assert [record.timestamp for record in held.providers[b"made tomorrow"].values()] == [NOW]


async def test_all_peers_are_known_again_and_a_bucket_of_them_is_in_the_routing_table(node: Libp2pNetwork, wall: None) -> None:
    await node.recall.take(known(*(NOW - n for n in range(30))), NOW, introduce=True)

    assert len(node.recall) == 30
    assert node.discovery.dht.size() == 20
    assert [peer.id for peer in node.recall.known(NOW).peers] == [str(peer) for peer in OTHERS]


async def test_a_peer_of_a_run_remembers_others_without_asking_them_for_anything(node: Libp2pNetwork, wall: None) -> None:
    before = known(NOW - 1, provides=(Provided(b"key", NOW - 20),))

    await node.recall.take(before, NOW, introduce=False)

    assert node.discovery.dht.size() == node.discovery.dht.providers.n_records == 0
    assert node.recall.known(NOW).contacts(1) == before.contacts(1)


async def test_hearsay_is_not_remembered(node: Libp2pNetwork) -> None:
    node.messenger.add_addresses(OTHERS[0], ("/ip4/8.8.8.8/tcp/1",))

    assert node.recall.known(NOW).peers == ()


async def test_a_peer_that_was_connected_is_remembered_with_the_addresses_that_it_listens_on(node: Libp2pNetwork) -> None:
    async with opened() as other:
        node.messenger.add_addresses(other.peer_id, tuple(a.partition("/p2p/")[0] for a in other.addresses()))
        await node.messenger.request(other.peer_id, b"")

        (remembered,) = node.recall.known(NOW).peers

        assert remembered.id == other.peer_id and remembered.connected_at == NOW
        assert f"{remembered.addresses[0]}/p2p/{remembered.id}" in other.addresses()
    await eventually(lambda: not node.messenger.connected())

    assert node.recall.known(NOW + 50).peers == (remembered,)


async def test_what_is_known_is_saved_at_the_end_and_taken_at_the_start(tmp_path: Path) -> None:
    file = KnownPeersFile(tmp_path / "known.json")
    told: list[str] = []
    async with opened(listen=()) as first, first.recall.kept(file, told.append, introduce=True):
        await first.recall.take(known(NOW), NOW, introduce=True)
    async with opened(listen=()) as again, again.recall.kept(file, told.append, introduce=True):
        assert [peer.id for peer in again.recall.known(NOW).peers] == [str(OTHERS[0])]
    assert told == []


async def test_a_damaged_file_is_told_and_does_not_keep_a_node_from_starting(node: Libp2pNetwork, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text("{")
    told: list[str] = []

    async with node.recall.kept(KnownPeersFile(tmp_path / "known.json"), told.append, introduce=True):
        assert len(told) == 1 and "known.json" in told[0]
        assert len(node.recall) == 0


async def test_a_disk_that_takes_nothing_is_told_once(node: Libp2pNetwork, tmp_path: Path, autojump_clock: object) -> None:
    (tmp_path / "a file").write_text("")
    told: list[str] = []

    async with node.recall.kept(KnownPeersFile(tmp_path / "a file" / "known.json"), told.append, introduce=True):
        await trio.sleep(3.5 * SAVE_EVERY_S)

    assert len(told) == 1 and "not kept" in told[0]


async def test_a_record_holds_a_few_addresses_however_many_its_peer_names(node: Libp2pNetwork) -> None:
    from libp2p.peer.peerinfo import PeerInfo

    providers = node.discovery.dht.providers
    many = [Multiaddr(f"/ip4/8.8.8.{n}/tcp/1") for n in range(200)]

    providers.add_provider(b"key", PeerInfo(ID.from_base58(PeerId(OTHERS[0])), many))

    assert [info.addrs for info in providers.get_providers(b"key")] == [many[:8]]
