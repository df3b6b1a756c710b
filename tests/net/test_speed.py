"""Tests of bandwidth over real connections: what they measure, and what strangers get out of them."""

import contextlib
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID

from legion_p2p.core.caps import parse_caps
from legion_p2p.core.speed_tests import MAX_TEST_BYTES
from legion_p2p.core.traffic_ledger import SPEED
from legion_p2p.errors import NetworkError
from legion_p2p.net import circuits, reach_service, speed
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.netem import Throttling
from legion_p2p.net.speed import PIECE_BYTES, PROTOCOL, _exactly, _read_block
from tests.net.conftest import eventually, opened
from tests.net.test_circuits import hidden, relay

FULL = struct.pack(">I", PIECE_BYTES)
WILLING = NetConfig(speed_tests=100, redial_max_s=1.0)


async def test_both_directions_are_measured_against_limits_that_are_known() -> None:
    link = Throttling(caps=parse_caps("8mbit", "16mbit", ""))
    async with opened(config=WILLING) as other, opened(of=other, throttling=link) as asker:
        measured = await asker.measure_speed(other.peer_id)

    assert 0 < measured.up_bps < 9e6 and 0 < measured.down_bps < 18e6  # a busy machine measures less, and none more
    assert measured.received_bytes <= measured.sent_bytes <= MAX_TEST_BYTES


async def test_who_takes_no_tests_says_so_and_who_is_busy_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as unwilling, opened(of=unwilling) as asker:
        with pytest.raises(NetworkError, match="it takes no tests of bandwidth"):
            await asker.measure_speed(unwilling.peer_id)
    async with opened(config=WILLING) as busy, opened(of=busy) as asker:
        busy.messenger._counters._upload.begin(trio.current_time())
        with pytest.raises(NetworkError, match="it is busy at the moment"):
            await asker.measure_speed(busy.peer_id)


async def test_one_that_is_gone_before_its_test_begins_keeps_nobody_else_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    write_block, n_written = speed._write_block, 0

    async def gone(stream: INetStream, data: bytes) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 1:
            raise StreamError("the other side has reset the stream")
        await write_block(stream, data)

    monkeypatch.setattr(speed, "_write_block", gone)
    async with opened(config=WILLING) as other, opened(of=other) as first, opened(of=other) as second:
        with pytest.raises(NetworkError):
            await first.measure_speed(other.peer_id)

        assert (await second.measure_speed(other.peer_id)).sent_bytes > 0


async def test_a_relay_carries_no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (circuits, reach_service):
        monkeypatch.setattr(module, "is_elsewhere", lambda host, networks: True)
    monkeypatch.setattr(circuits, "is_loopback", lambda address: False)
    async with relay() as node, hidden(node) as far, opened(of=node, listen=()) as near:
        near.messenger.add_addresses(far.peer_id, far.messenger.addresses())
        await near.messenger.request(far.peer_id, b"x")

        with pytest.raises(NetworkError, match="only over a direct connection"):
            await near.measure_speed(far.peer_id)


async def answered(ask: Callable[[INetStream], Awaitable[None]]) -> tuple[int, list[str]]:
    """How many bytes a willing peer sends to a stranger that asks like this, and what is reported of it."""
    async with opened(config=WILLING) as other, opened(of=other) as stranger:
        reported: list[str] = []
        report = other.messenger.refusals.report
        other.messenger.refusals.report = lambda peer, what: (reported.append(what), report(peer, what))  # type: ignore
        before = other.network_traffic().ledger.by_class.get(SPEED)
        assert before is None
        stream = await stranger._host.new_stream(ID.from_base58(other.peer_id), [PROTOCOL])
        await _read_block(stream)
        with trio.move_on_after(10), contextlib.suppress(StreamError):  # it ends what breaks the protocol
            await ask(stream)
        await stream.reset()
        await trio.sleep(0.1)
        # the next one gets its turn: none is running any more
        async with opened(of=other) as honest:
            await eventually(lambda: not other_tests(other)._is_running)
            assert (await honest.measure_speed(other.peer_id)).sent_bytes > 0
            spent = other.network_traffic().ledger
        return spent.by_peer[stranger.peer_id].sent_bytes, reported


def other_tests(network):
    return network._host.multiselect.handlers[PROTOCOL].__self__._tests


async def test_nobody_gets_more_bytes_than_it_has_sent() -> None:
    async def send_little_and_take_all(stream: INetStream) -> None:
        await stream.write(struct.pack(">I", 1000) + b"x" * 1000 + struct.pack(">I", 0))
        assert struct.unpack(">I", await _exactly(stream, 4)) == (1000,)
        await _exactly(stream, 4 + 1000 + 4)
        with trio.move_on_after(0.5):
            await stream.read(1)
            raise AssertionError("more came")

    n_sent, reported = await answered(send_little_and_take_all)

    assert n_sent < 1000 + 5000 and not reported  # discovery and identify beside it


@pytest.mark.parametrize(
    "garbage", [struct.pack(">I", PIECE_BYTES + 1), struct.pack(">I", 0xFFFFFFFF), 65 * (FULL + b"x" * PIECE_BYTES)]
)
async def test_pieces_that_are_too_large_or_too_many_end_the_test_and_are_reported(garbage: bytes) -> None:
    async def send(stream: INetStream) -> None:
        await stream.write(garbage)
        await stream.read(1)

    n_sent, reported = await answered(send)

    assert n_sent < 5000
    assert [what for what in reported if "in a test of bandwidth: a piece of" in what]


async def test_one_that_falls_silent_in_the_middle_keeps_its_place_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WHOLE_S", 0.5)
    async with opened(config=WILLING) as other, opened(of=other) as stranger:
        stream = await stranger._host.new_stream(ID.from_base58(other.peer_id), [PROTOCOL])
        await stream.write(struct.pack(">I", 10) + b"x" * 5)

        await eventually(lambda: other_tests(other)._granted and not other_tests(other)._is_running)


@pytest.mark.parametrize("n_back", [5_000_000, 100_000])
async def test_an_answer_that_is_longer_than_what_was_sent_ends_the_test(n_back: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile node cannot make the doctor download without end."""
    monkeypatch.setattr(speed, "MAX_TEST_BYTES", 50_000)

    async def too_much(stream: INetStream, n_bytes: int) -> int:
        for _ in range(n_back // PIECE_BYTES + 1):
            await stream.write(FULL + b"x" * PIECE_BYTES)
        return n_back

    async with opened(config=WILLING) as other, opened(of=other) as asker:
        give = speed._give
        n_calls = [0]

        async def only_the_answer(stream: INetStream, n_bytes: int) -> int:
            n_calls[0] += 1
            return await (give if n_calls[0] == 1 else too_much)(stream, n_bytes)

        monkeypatch.setattr(speed, "_give", only_the_answer)
        with pytest.raises(NetworkError, match="does not keep to the protocol: a piece of"):
            await asker.measure_speed(other.peer_id)
