"""Addresses as people write them."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.addresses import (
    FORM,
    MAX_ADDRESSES,
    Circuit,
    parse_addresses,
    parse_peer_address,
    split_address,
    split_circuit,
)
from legion_p2p.core.identity import Identity
from legion_p2p.errors import UsageError
from legion_p2p.net.address_book import AddressBook, dialable
from legion_p2p.net.limits import MAX_ADDRESSES_PER_PEER, MAX_CIRCUITS_PER_PEER

PEER = Identity(bytes(32)).peer_id
GOOD = [
    f"/ip4/203.0.113.7/tcp/4710/p2p/{PEER}",
    f"/ip6/2001:db8::7/tcp/4710/p2p/{PEER}",
    f"/dns/boot.example.org/tcp/4710/p2p/{PEER}",
    f"/dns4/localhost/tcp/1/p2p/{PEER}",
    f"/dns6/a-b.c_d.example/tcp/65535/p2p/{PEER}",
]
BAD = [
    "", "/", "hello", "1.2.3.4:80", f"/ip4/1.2.3.4/p2p/{PEER}", f"/ip4/1.2.3/tcp/1/p2p/{PEER}", f"/ip4/::1/tcp/1/p2p/{PEER}",
    f"/ip6/1.2.3.4/tcp/1/p2p/{PEER}", f"/ip4/1.2.3.4/udp/1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/65536/p2p/{PEER}",
    f"/ip4/1.2.3.4/tcp/-1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/x/p2p/{PEER}", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/",
    "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit",
    f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}", f"/dns4//tcp/1/p2p/{PEER}", f"/dns4/a..b/tcp/1/p2p/{PEER}",
    f"/dns4/{'a' * 300}/tcp/1/p2p/{PEER}",
    f"/unix/tmp/tcp/1/p2p/{PEER}", f" /ip4/1.2.3.4/tcp/1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/\u0661/p2p/{PEER}", "/" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("address", GOOD)
def test_a_good_address_is_taken_apart(address):
    where, peer = parse_peer_address(address)

    assert f"{where}/p2p/{peer}" == address
    assert peer == PEER
    assert split_address(where) == (where, None)


@pytest.mark.parametrize("address", BAD, ids=lambda address: address[:40])
def test_a_bad_address_is_named_with_the_right_form(address):
    with pytest.raises(UsageError) as error:
        parse_peer_address(address)

    assert address[:40] in str(error.value)
    assert len(str(error.value)) < 1000
    if len(address) < 500:
        assert FORM in str(error.value)


@given(st.text(max_size=100) | st.text(alphabet="/ip4dns.tcp20:", max_size=100))
def test_no_text_raises_anything_else(text):
    with contextlib.suppress(UsageError):
        parse_peer_address(text)


def test_words_commas_files_comments_and_blank_lines(tmp_path):
    (tmp_path / "more.txt").write_text(f"{GOOD[3]}\n")
    peers = tmp_path / "peers.txt"
    peers.write_text(f"# our bootstrap nodes\n\n  {GOOD[1]}  # in the cellar\n{GOOD[2]}\n@more.txt\n{GOOD[0]}\n")

    assert parse_addresses([f"{GOOD[0]},{GOOD[4]}", f"@{peers}"]) == (GOOD[0], GOOD[4], GOOD[1], GOOD[2], GOOD[3])
    assert parse_addresses([]) == ()
    assert parse_addresses([" ".join(GOOD)]) == tuple(GOOD)


def test_a_bad_line_is_named(tmp_path):
    peers = tmp_path / "peers.txt"
    peers.write_text(f"{GOOD[0]}\n\nnonsense\n")

    with pytest.raises(UsageError, match=f"{peers}, line 3: 'nonsense'"):
        parse_addresses([f"@{peers}"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"@.*none\.txt: .*there is no such file"):
        parse_addresses([f"@{tmp_path}/none.txt"])


def test_a_file_that_is_no_text_is_named(tmp_path):
    for raw, told in ((b"\xff\xfe\x00", "not text in UTF-8"), (b"\x1f\x8b\x08", "it is gzip"), (bytes(20), "binary data")):
        (tmp_path / "x").write_bytes(raw)

        with pytest.raises(UsageError, match=told):
            parse_addresses([f"@{tmp_path}/x"])


def test_a_file_may_have_blanks_in_its_name_and_stand_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my peers, all.txt").write_text(f"{GOOD[0]}\n@more of them.txt\n@so # named.txt\n")
    (tmp_path / "more of them.txt").write_text(GOOD[1])
    (tmp_path / "so # named.txt").write_text(GOOD[2])

    assert parse_addresses(["@~/my peers, all.txt"]) == tuple(GOOD[:3])
    assert parse_addresses([f"@{tmp_path}/more of them.txt"]) == (GOOD[1],)
    assert parse_addresses([f"@{tmp_path}/my peers, all.txt", GOOD[3]]) == tuple(GOOD[:4])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, encoding, end):
    (tmp_path / "p.txt").write_bytes(f"# gewählt{end}{GOOD[0]}{end}{GOOD[1]}{end}".encode(encoding))

    assert parse_addresses([f"@{tmp_path}/p.txt"]) == tuple(GOOD[:2])


@pytest.mark.parametrize(
    "line",
    [
        f"--initial-peers {GOOD[0]} {GOOD[1]}",
        f"--initial-peers={GOOD[0]},{GOOD[1]}",
        f"12:00:00 others join with: legion-peer --run stories --initial-peers {GOOD[0]} {GOOD[1]}",
        f"to come back: legion-peer --initial-peers {GOOD[0]} '{GOOD[1]}' --run 'stories'",
    ],
)
def test_a_line_that_a_command_printed_is_taken_as_it_is(tmp_path, line):
    (tmp_path / "p.txt").write_text(line + "\n")

    assert parse_addresses([f"@{tmp_path}/p.txt"]) == tuple(GOOD[:2])


def test_a_pipe_that_nobody_writes_to_holds_no_address(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert parse_addresses([f"@{tmp_path}/pipe"]) == ()


def test_files_that_each_include_many_are_refused(tmp_path):
    for n in range(4):
        (tmp_path / str(n)).write_text(f"@{n + 1}\n" * 40)
    (tmp_path / "4").write_text("")

    with pytest.raises(UsageError, match="more than 100 of them"):
        parse_addresses([f"@{tmp_path}/0"])


def test_a_file_that_includes_itself_is_refused(tmp_path):
    (tmp_path / "loop").write_text("@loop\n")

    with pytest.raises(UsageError, match="deep"):
        parse_addresses([f"@{tmp_path}/loop"])


def test_too_many_addresses_are_refused():
    with pytest.raises(UsageError, match="more than"):
        parse_addresses(f"/ip4/10.0.{n >> 8}.{n & 255}/tcp/1/p2p/{PEER}" for n in range(MAX_ADDRESSES + 1))


RELAY = Identity(bytes(31) + b"r").peer_id
CIRCUITS = [f"{address.replace(PEER, RELAY)}/p2p-circuit" for address in GOOD]


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_a_circuit_is_taken_apart_and_joined_by(circuit):
    where, relay = parse_peer_address(circuit.removesuffix("/p2p-circuit"))

    assert split_circuit(circuit) == (Circuit(where, relay), None)
    assert split_circuit(f"{circuit}/p2p/{PEER}") == (Circuit(where, relay), PEER)
    assert parse_peer_address(f"{circuit}/p2p/{PEER}") == (circuit, PEER)
    assert dialable(f"{circuit}/p2p/{PEER}") == circuit


@pytest.mark.parametrize(
    "bad",
    [
        "/p2p-circuit", f"/p2p/{RELAY}/p2p-circuit", "/ip4/1.2.3.4/tcp/1/p2p-circuit", f"{CIRCUITS[0]}/p2p-circuit",
        f"{CIRCUITS[0]}/p2p/{PEER}/p2p-circuit/p2p/{PEER}", f"{CIRCUITS[0]}x", f"/ip4/1.2.3.4/tcp/0/p2p/{RELAY}/p2p-circuit",
        f"{CIRCUITS[0]}/p2p/nobody", CIRCUITS[0] + "/" * 1000,
    ],
)  # fmt: skip
def test_what_is_no_circuit_is_neither_read_nor_remembered(bad):
    with pytest.raises(UsageError):
        split_circuit(bad)
    assert dialable(bad) is None


def test_circuits_of_a_peer_have_places_of_their_own_in_the_address_book():
    book = AddressBook()
    own = [f"/ip4/192.168.0.{n}/tcp/1" for n in range(1, 21)]
    circuits = [f"/ip4/11.0.0.{n}/tcp/1/p2p/{RELAY}/p2p-circuit" for n in range(1, 21)]

    book.add(PEER, [*circuits, *own])
    book.hear(PEER, ["/ip4/12.0.0.1/tcp/1"])

    assert book.of(PEER) == (*own[:MAX_ADDRESSES_PER_PEER], *circuits[:MAX_CIRCUITS_PER_PEER])
