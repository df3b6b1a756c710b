"""The peers that a node knows over a restart: what is kept of them, in which form, and what a damaged file does."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import known_peers
from legion_p2p.core.identity import Identity
from legion_p2p.core.known_peers import MAX_RECORD_KEY_BYTES, KnownPeer, KnownPeers, Provided, bounded
from legion_p2p.errors import StoreError
from legion_p2p.store.known_peers_file import MAX_FILE_BYTES, KnownPeersFile

IDS = [str(Identity(bytes([n]) * 32).peer_id) for n in range(8)]


def peer(n: int, at: float = 0.0, *addresses: str, provides: tuple[Provided, ...] = ()) -> KnownPeer:
    return KnownPeer(IDS[n], addresses or (f"/ip4/198.51.100.{n}/tcp/4710",), at, provides)


def test_the_peer_that_was_connected_last_is_the_first_contact() -> None:
    known = bounded([peer(0, 10), peer(1, 30), peer(2, 20)])

    assert known.contacts(2) == (f"/ip4/198.51.100.1/tcp/4710/p2p/{IDS[1]}", f"/ip4/198.51.100.2/tcp/4710/p2p/{IDS[2]}")


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/198.51.100.1/udp/4710",
        "/ip4/198.51.100.1/tcp/0",
        "nonsense",
        f"/ip4/198.51.100.1/tcp/4710/p2p/{IDS[3]}",
        "/ip4/x/tcp/1",
    ],
)
def test_what_cannot_be_dialed_is_left_out(address: str) -> None:
    known = bounded([peer(0, 1, address, "/dns4/node.example/tcp/4710"), peer(1, 2, address)])

    assert known.peers == (peer(0, 1, "/dns4/node.example/tcp/4710"),)


def test_a_peer_that_cannot_exist_is_left_out() -> None:
    assert bounded([KnownPeer("12D3KooWnobody", ("/ip4/198.51.100.1/tcp/1",), 1.0)]).peers == ()


def test_of_too_many_peers_and_records_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_peers, "MAX_REMEMBERED_PEERS", 3)
    monkeypatch.setattr(known_peers, "MAX_REMEMBERED_RECORDS", 5)
    records = tuple(Provided(bytes([n]), 0.0) for n in range(2))

    known = bounded([peer(n, float(n), provides=records) for n in range(5)])

    assert [each.id for each in known.peers] == [IDS[4], IDS[3], IDS[2]]
    assert [len(each.provides) for each in known.peers] == [2, 2, 1]


def test_keys_that_no_dht_takes_are_left_out() -> None:
    records = (Provided(b"", 0.0), Provided(bytes(MAX_RECORD_KEY_BYTES + 1), 0.0), Provided(b"key", 0.0))

    assert bounded([peer(0, provides=records)]).peers[0].provides == (Provided(b"key", 0.0),)


@given(st.lists(st.tuples(st.integers(0, 7), st.floats(0, 1e10), st.lists(st.sampled_from(["/ip4/1.2.3.4/tcp/5", "x", ""])))))
def test_what_is_bounded_once_stays_as_it_is(entries: list[tuple[int, float, list[str]]]) -> None:
    known = bounded(KnownPeer(IDS[n], tuple(addresses), at) for n, at, addresses in entries)

    assert bounded(known.peers) == known
    assert len({each.id for each in known.peers}) == len(known.peers)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = KnownPeersFile.beside(str(tmp_path / "new" / "peer.key"))
    known = bounded([peer(0, 1.5, provides=(Provided(b"\x12\x20\xff", 2.5),)), peer(1, 1.0)])

    file.save(known)

    assert file.load() == known
    assert file.path == tmp_path / "new" / "peer.peers.json"


def test_where_there_is_no_file_nothing_is_known(tmp_path: Path) -> None:
    assert KnownPeersFile.beside(str(tmp_path / "peer.key")).load() == KnownPeers()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"peers": [{"id": 3}]}', b'{"peers": [', b" " * (MAX_FILE_BYTES + 1)]
)
def test_a_damaged_file_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    file = KnownPeersFile.beside(str(tmp_path / "peer.key"))
    file.path.write_bytes(content)

    with pytest.raises(StoreError, match=r"peer\.peers\.json"):
        file.load()


def test_what_somebody_wrote_into_the_file_is_checked_when_it_is_read(tmp_path: Path) -> None:
    file = KnownPeersFile.beside(str(tmp_path / "peer.key"))
    file.path.write_bytes(msgspec.json.encode(KnownPeers((peer(0, 1, "/ip4/1.2.3.4/tcp/0"), peer(1, 2)))))

    assert file.load().peers == (peer(1, 2),)
