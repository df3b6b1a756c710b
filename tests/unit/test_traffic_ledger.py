"""The books of a peer's traffic: what a request is for, bounds, and what legion-ctl bw prints."""

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.cli.bandwidth import MOST_PEERS, lines_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.shards import GetShard
from legion_p2p.core.traffic_ledger import (
    _CLASSES,
    HOUR_S,
    MAX_HOURS,
    MAX_PEERS,
    OTHER_CLASS,
    MovedBytes,
    TrafficLedger,
    class_of,
    left_over,
    summed,
)
from legion_p2p.core.wire import GetBlocks, Ping, encode
from legion_p2p.errors import NetworkError, RefusedError
from legion_p2p.observe.status import BooksStatus, ShardTrafficRow, TrafficRow
from legion_p2p.services.inter_region.traffic import RegionalMessenger
from legion_p2p.sim.network import World
from tests.parts_of import identity_of


def test_a_request_is_told_by_its_type_without_decoding_it() -> None:
    assert class_of(encode(Ping("run"))) == "members"
    assert class_of(encode(GetShard("run", 0))) == "catching up"
    assert class_of(bytearray(encode(Ping("run")))) == class_of(memoryview(encode(Ping("run")))) == "members"
    assert class_of(encode(GetBlocks(()))) == "checkpoints and data"
    assert {class_of(msgspec.msgpack.encode({"type": tag})) for tags in _CLASSES.values() for tag in tags} == set(_CLASSES)


@given(st.binary(max_size=80))
def test_any_bytes_have_a_class(body: bytes) -> None:
    assert class_of(body) in {*_CLASSES, OTHER_CLASS}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["pushes", "members"]), st.integers(0, 9), st.integers(0, 9))))
def test_all_three_books_add_up_to_the_same(moved: list[tuple[str, str, int, int]]) -> None:
    ledger = TrafficLedger()

    for n, (peer, kind, sent, received) in enumerate(moved):
        ledger.moved(peer, kind, sent, received, n * HOUR_S / 4)

    total = MovedBytes(sum(row[2] for row in moved), sum(row[3] for row in moved))
    if len(moved) < 4 * MAX_HOURS:
        for book in (ledger.by_peer, ledger.by_class, ledger.by_hour.hours):
            assert MovedBytes(sum(m.sent_bytes for m in book.values()), sum(m.received_bytes for m in book.values())) == total


def test_crowds_and_years_do_not_make_the_books_grow() -> None:
    ledger = TrafficLedger()

    for n in range(2 * MAX_PEERS):
        ledger.moved(f"peer {n}", "members", 1, 1, n * HOUR_S)

    assert len(ledger.by_peer) == MAX_PEERS and len(ledger.by_hour.hours) == MAX_HOURS and len(ledger.by_class) == 1


async def test_the_messenger_writes_down_both_directions_on_both_sides(autojump_clock: object) -> None:
    async with World() as world:
        one, two = (RegionalMessenger(world.join(identity_of(name)).messenger, lambda peer: False) for name in "ab")
        one.add_addresses(two.peer_id, two.addresses())

        async def echo(peer: PeerId, body: bytes) -> bytes:
            return body * 2

        two.serve(echo)
        body = encode(Ping("run"))
        await one.request(two.peer_id, body)

    assert one.books.by_peer == {two.peer_id: MovedBytes(len(body), 2 * len(body))}
    assert two.books.by_peer == {one.peer_id: MovedBytes(2 * len(body), len(body))}
    assert set(one.books.by_class) == set(two.books.by_class) == {"members"}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.tuples(st.integers(0, 99), st.integers(0, 99))
)  # fmt: skip
def test_what_no_ledger_names_and_what_ledgers_name_make_the_total_unless_ledgers_name_more(
    named: list[tuple[int, int]], total: tuple[int, int]
) -> None:
    accounted = [MovedBytes(*one) for one in named]

    rest = left_over(MovedBytes(*total), accounted)

    for way in ("sent_bytes", "received_bytes"):
        known, whole = sum(getattr(one, way) for one in accounted), getattr(MovedBytes(*total), way)
        assert getattr(rest, way) == max(0, whole - known)


async def test_a_request_counts_when_it_has_been_answered_and_one_that_fails_does_not(autojump_clock: object) -> None:
    async with World() as world:
        one, two = (RegionalMessenger(world.join(identity_of(name)).messenger, lambda peer: False) for name in "ab")
        one.add_addresses(two.peer_id, two.addresses())

        async def slow(peer: PeerId, body: bytes) -> bytes:
            await trio.sleep(10)
            raise NetworkError("no")

        two.serve(slow)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(RefusedError):
                    await one.request(two.peer_id, encode(Ping("run")))

            nursery.start_soon(ask)
            await trio.sleep(5)
            assert one.books.by_class == {}

    assert one.books.by_class == {} and one.regional.in_region == 0


def test_what_codecs_saved_is_said_for_each_kind_and_direction() -> None:
    rows = (ShardTrafficRow("pushes", 250, 1000, 0, 0), ShardTrafficRow("whole shards", 0, 0, 1010, 1000))

    lines = lines_of(BooksStatus(shards=rows))

    at = next(n for n, line in enumerate(lines) if line.startswith("shards, in codecs"))
    assert lines[at].split()[-4:] == ["sent", "saved", "received", "saved"]
    assert lines[at + 1].split() == ["pushes", "250", "B", "75.0", "%", "0", "B", "-"]
    assert lines[at + 2].split() == ["whole", "shards", "0", "B", "-", "1.01", "kB", "0", "%"]
    assert not any(line.startswith("shards") for line in lines_of(BooksStatus()))


def test_the_last_lines_of_what_it_was_for_say_what_is_left_over_and_what_all_of_it_is() -> None:
    rows = {name: TrafficRow(name, n, n) for name, n in (("total", 10_000), ("rest", 2_000), ("local", 500))}

    lines = lines_of(BooksStatus((), (TrafficRow("gossip", 8_000, 8_000),), (), **rows))

    assert [line.split()[-4] for line in lines[1:5]] == ["8.00", "2.00", "10.0", "500"]
    assert lines[2].startswith("headers and encryption") and lines[4].startswith("of it on this network")


def test_two_books_of_one_peer_are_added_name_by_name() -> None:
    one, other = {"a": MovedBytes(1, 2)}, {"a": MovedBytes(3, 4), "b": MovedBytes(5, 6)}

    assert summed((one, other)) == {"a": MovedBytes(4, 6), "b": MovedBytes(5, 6)}


def test_the_tables_have_the_largest_first_and_say_what_is_left_out() -> None:
    peers = tuple(TrafficRow(f"12D3KooW{n:08}", n, 0) for n in range(MOST_PEERS + 3))
    lines = lines_of(BooksStatus(peers, (TrafficRow("pushes", 2_000_000, 1_000),), ()))

    assert lines[1].split() == ["pushes", "2.00", "MB", "1.00", "kB"]
    assert lines[4].startswith(f"{MOST_PEERS + 2:08}") and "and 3 more peers" in lines
    assert lines[-1] == "nothing yet"
