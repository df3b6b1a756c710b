"""Provider records held for others."""

from types import SimpleNamespace

import pytest
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from legion_p2p.core.identity import Identity
from legion_p2p.net import providers as providers_module
from legion_p2p.net.dht import multihash_of
from legion_p2p.net.providers import Providers

PEERS = [PeerInfo(ID.from_base58(Identity(bytes([n]) * 32).peer_id), [Multiaddr("/ip4/1.2.3.4/tcp/5")]) for n in range(3)]


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(s=1000.0)
    monkeypatch.setattr("time.time", lambda: clock.s)
    return clock


@pytest.fixture
def providers(now):
    return Providers(SimpleNamespace(get_id=lambda: PEERS[0].peer_id), lifetime_s=60.0)


def held(providers, key):
    return [info.peer_id for info in providers.get_providers(key)]


def test_a_record_is_forgotten_after_our_lifetime_unless_renewed(providers, now):
    for peer in PEERS[:2]:
        providers.add_provider(b"key", peer)
    now.s += 50
    providers.add_provider(b"key", PEERS[1])
    now.s += 20

    assert held(providers, b"key") == [PEERS[1].peer_id]
    now.s += 50
    assert held(providers, b"key") == []
    assert providers.size() == 0


def test_expired_records_are_swept_without_being_asked_for(providers, now):
    providers.add_provider(b"key", PEERS[0])
    now.s += 61

    providers.cleanup_expired()

    assert providers.providers == {}


def test_a_withdrawn_record_is_gone_at_once(providers):
    for peer in PEERS:
        providers.add_provider(b"key", peer)

    providers.remove(b"key", PEERS[1].peer_id)
    providers.remove(b"other", PEERS[1].peer_id)

    assert held(providers, b"key") == [PEERS[0].peer_id, PEERS[2].peer_id]


def test_keys_are_bounded_and_the_oldest_goes(providers, monkeypatch):
    monkeypatch.setattr(providers_module, "MAX_PROVIDER_KEYS", 3)

    for n in range(5):
        providers.add_provider(b"%d" % n, PEERS[0])

    assert sorted(providers.providers) == [b"2", b"3", b"4"]


def test_any_key_has_its_place():
    assert multihash_of("run/1") != multihash_of("run/2")
    assert len(multihash_of("x" * 500)) == 34


def test_records_are_bounded_over_all_keys_and_the_oldest_key_goes(providers, monkeypatch, now):
    monkeypatch.setattr(providers_module, "MAX_PROVIDER_RECORDS", 5)

    for n in range(4):
        for peer in PEERS[:2]:
            providers.add_provider(b"%d" % n, peer)

    assert sorted(providers.providers) == [b"2", b"3"]
    assert providers.n_records == providers.size() == 4
    now.s += 61
    providers.cleanup_expired()
    assert providers.n_records == 0


def test_one_key_holds_no_more_than_twenty_and_the_count_is_right(providers):
    peers = [PeerInfo(ID.from_base58(Identity(bytes([n]) * 32).peer_id), [Multiaddr("/ip4/1.2.3.4/tcp/5")]) for n in range(30)]

    for peer in peers * 2:
        providers.add_provider(b"key", peer)
    providers.remove(b"key", peers[0].peer_id)

    assert providers.n_records == providers.size() == 19
