"""Shaped connections: in virtual time over a fake kernel, and real ones over loopback."""

import math
import random

import pytest
import trio
import trio.lowlevel
from libp2p.io.exceptions import ConnectionClosedError

from legion_p2p.core.access_link import MAX_WAITING_BYTES, QUEUE_S, LinkProfile
from legion_p2p.core.caps import NO_CAPS, Caps, QuietHours, parse_caps
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.priority import Priority
from legion_p2p.core.profiles import PROFILES, parse_link
from legion_p2p.net.netem import Shaper, Throttling, place_of
from legion_p2p.net.shaped_socket import ShapedSocket
from legion_p2p.net.sockets import Sockets
from tests.net.conftest import opened

SLOW = LinkProfile(up_bps=1e6, down_bps=2e6, rtt_s=0.2)


class Kernel:
    """One end of a connection that takes no time, with a send buffer, as trio and the system offer it."""

    def __init__(self, sent: trio.MemorySendChannel, received: trio.MemoryReceiveChannel) -> None:
        self._sent, self._received = sent, received
        self.taking = trio.Event()
        self.taking.set()
        self.broken = False
        self.socket = self

    async def send_all(self, data: bytes) -> None:
        await self.taking.wait()
        if self.broken:
            raise trio.BrokenResourceError("reset")
        await self._sent.send(bytes(data))

    async def receive_some(self, most: int) -> bytes:
        try:
            return await self._received.receive()
        except trio.EndOfChannel:
            return b""

    def getpeername(self) -> tuple[str, int]:
        return "10.0.0.2", 4710

    def getsockname(self) -> tuple[str, int]:
        return "10.0.0.1", 4710

    def close(self) -> None:
        self._sent.close()
        self._received.close()

    def fileno(self) -> int:
        raise OSError("not a real socket")

    def setsockopt(self, *_: object) -> None: ...


def kernel_pair() -> tuple[Kernel, Kernel]:
    (a_send, b_receive), (b_send, a_receive) = trio.open_memory_channel(math.inf), trio.open_memory_channel(math.inf)
    return Kernel(a_send, a_receive), Kernel(b_send, b_receive)


def shaped(nursery: trio.Nursery, profile: LinkProfile, kernel: Kernel, caps: Caps = NO_CAPS, **kwargs) -> ShapedSocket:
    shaper = Shaper(profile, caps, random.Random(0), **kwargs)
    shaper.start(nursery)
    return shaper.shaped(kernel, Sockets(), "")


async def read_all(stream: ShapedSocket, n_bytes: int) -> list[tuple[float, bytes]]:
    pieces, n_read = [], 0
    while n_read < n_bytes:
        pieces.append((trio.current_time(), await stream.read(1 << 20)))
        pieces[-1] = (trio.current_time(), pieces[-1][1])
        n_read += len(pieces[-1][1])
    return pieces


async def test_bytes_cross_two_links_in_order_at_the_slower_rate_after_both_delays(autojump_clock, nursery):
    here, there = kernel_pair()
    a, b = shaped(nursery, SLOW, here), shaped(nursery, LinkProfile(down_bps=500e3, rtt_s=0.1), there)
    data = random.Random(1).randbytes(250_000)

    began = trio.current_time()

    async def write() -> None:
        for start in range(0, len(data), 10_000):
            await a.write(data[start : start + 10_000])

    nursery.start_soon(write)
    pieces = await read_all(b, len(data))

    assert b"".join(piece for _, piece in pieces) == data
    assert pieces[0][0] - began == pytest.approx(0.1 + 0.05, abs=0.05)
    assert pieces[-1][0] - began == pytest.approx(8 * 250_000 / 500e3 + 0.15, rel=0.03)


async def test_connections_of_one_peer_share_its_link(autojump_clock, nursery):
    shaper = Shaper(SLOW, rng=random.Random(0))
    shaper.start(nursery)
    pairs = [kernel_pair() for _ in range(3)]
    mine = [shaper.shaped(here, Sockets(), "") for here, _ in pairs]
    received = [0, 0, 0]

    async def write(stream: ShapedSocket) -> None:
        while True:
            await stream.write(bytes(50_000))

    async def read(i: int) -> None:
        while True:
            received[i] += len(await pairs[i][1].receive_some(1 << 20))

    for i, stream in enumerate(mine):
        nursery.start_soon(write, stream)
        nursery.start_soon(read, i)
    await trio.sleep(10.1)

    assert sum(received) == pytest.approx(10 * 1e6 / 8, rel=0.02)
    assert max(received) < 1.1 * min(received)


async def test_a_writer_waits_when_the_link_is_full(autojump_clock, nursery):
    here, _ = kernel_pair()
    a = shaped(nursery, SLOW, here)
    n_written = 0

    async def write() -> None:
        nonlocal n_written
        while True:
            await a.write(bytes(1000))
            n_written += 1000

    nursery.start_soon(write)
    for second in range(1, 6):
        await trio.sleep(1.0)
        assert n_written - second * 1e6 / 8 <= MAX_WAITING_BYTES + QUEUE_S * 1e6 / 8 + 2000

    here.taking = trio.Event()  # the other side reads no more
    await trio.sleep(5.0)
    stuck = n_written
    await trio.sleep(5.0)
    assert n_written == stuck


async def test_a_writer_who_gives_up_leaves_no_half_of_what_it_wrote(autojump_clock, nursery):
    here, there = kernel_pair()
    a = shaped(nursery, SLOW, here)
    await a.write(bytes(2 * MAX_WAITING_BYTES))

    with trio.move_on_after(0.01) as gave_up:
        await a.write(b"x" * 30_000)
    await a.write(b"y" * 30_000)
    await trio.sleep(5.0)

    arrived = b""
    while len(arrived) < 2 * MAX_WAITING_BYTES + 30_000:
        arrived += await there.receive_some(1 << 20)
    assert gave_up.cancelled_caught
    assert arrived == bytes(2 * MAX_WAITING_BYTES) + b"y" * 30_000


async def test_what_came_before_the_end_is_read_before_the_end(autojump_clock, nursery):
    here, there = kernel_pair()
    a = shaped(nursery, SLOW, here)
    await there.send_all(b"last words")
    there.close()

    began = trio.current_time()
    assert await a.read(100) == b"last words"
    with pytest.raises(ConnectionClosedError, match="ended by the other side"):
        await a.read(100)
    assert trio.current_time() - began >= 0.1


async def test_writing_to_a_broken_connection_fails_and_so_does_reading(autojump_clock, nursery):
    here, _ = kernel_pair()
    a = shaped(nursery, SLOW, here)
    here.broken = True
    await a.write(b"lost")
    await trio.sleep(1.0)

    with pytest.raises(ConnectionClosedError, match="reset"):
        await a.write(b"too late")
    with pytest.raises(ConnectionClosedError):
        await a.read(1)


async def test_closing_wakes_everybody_who_waits(autojump_clock, nursery):
    here, _ = kernel_pair()
    a = shaped(nursery, SLOW, here)
    failed = []

    async def wait_for(action, *args) -> None:
        try:
            while True:
                await action(*args)
        except ConnectionClosedError as error:
            failed.append(error)

    nursery.start_soon(wait_for, a.write, bytes(100_000))
    nursery.start_soon(wait_for, a.read, 10)
    await trio.sleep(1.0)
    a.close_now()
    await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()

    assert len(failed) == 2


async def test_limits_without_a_delay_only_limit(autojump_clock, nursery):
    here, there = kernel_pair()
    a = shaped(nursery, LinkProfile(), here, parse_caps(upload="1mbit"))
    began = trio.current_time()

    await a.write(bytes(125_000))
    n_read = 0
    while n_read < 125_000:
        n_read += len(await there.receive_some(1 << 20))

    assert trio.current_time() - began == pytest.approx(1.0, rel=0.02)
    await there.send_all(b"x" * 1000)
    before = trio.current_time()
    assert len(await a.read(1000)) == 1000 and trio.current_time() == before  # downwards there is no limit


async def test_a_limit_that_is_set_later_holds_for_connections_that_are_open(autojump_clock, nursery):
    here, there = kernel_pair()
    shaper = Shaper(LinkProfile(), rng=random.Random(0))
    shaper.start(nursery)
    a = shaper.shaped(here, Sockets(), "")
    pieces: list[tuple[int, float]] = []
    both = trio.Event()

    async def read_two():
        for _ in range(2):
            pieces.append((len(await a.read(1000)), trio.current_time()))
        both.set()

    nursery.start_soon(read_two)
    await trio.testing.wait_all_tasks_blocked()  # it reads before there is a limit
    began = trio.current_time()
    await a.write(bytes(125_000))
    n_read = len(await there.receive_some(1 << 20))
    was_free = not shaper.is_shaping
    shaper.limit(parse_caps("1mbit", "80kbit"))
    await a.write(bytes(125_000))
    while n_read < 250_000:
        n_read += len(await there.receive_some(1 << 20))
    took_s = trio.current_time() - began
    for _ in range(2):
        await there.send_all(b"x" * 1000)
    await both.wait()
    shaper.limit(NO_CAPS)
    before = trio.current_time()
    await a.write(bytes(125_000))
    while n_read < 375_000:
        n_read += len(await there.receive_some(1 << 20))

    assert was_free and shaper.is_shaping is False
    assert took_s == pytest.approx(1.0, rel=0.05)  # the first went at once, the second at the limit
    assert [n for n, _ in pieces] == [1000, 1000] and pieces[1][1] - pieces[0][1] == pytest.approx(0.1, rel=0.2)
    assert trio.current_time() == pytest.approx(before, abs=0.01)


async def test_quiet_hours_begin_and_end(autojump_clock, nursery):
    minute = [12 * 60]
    caps = Caps(upload_bps=10e6, quiet=QuietHours(22 * 60, 7 * 60, 1e6))
    shaper = Shaper(LinkProfile(), caps, random.Random(0), lambda: minute[0])
    shaper.start(nursery)

    seen = [shaper.limits_bps()]
    for minute[0] in (22 * 60, 7 * 60):
        await trio.sleep(6.0)
        seen.append(shaper.limits_bps())

    assert seen == [(10e6, math.inf), (1e6, 1e6), (10e6, math.inf)]


def test_places_are_told_apart_by_address():
    assert [place_of(host) for host in ("127.3.0.1", "127.0.0.1", "192.0.2.1", "::1", "localhost", "")] == [3, 0, 0, 0, 0, 0]


async def test_requests_pass_links_with_delay_loss_and_little_rate():
    link = parse_link("up=20mbit,down=20mbit,rtt=20ms,jitter=5ms,loss=1%,place=1,across=20ms")
    body = random.Random(0).randbytes(300_000)

    async with (
        opened(throttling=Throttling(link), listen=["/ip4/127.1.0.1/tcp/0"]) as a,
        opened(of=a, throttling=Throttling(parse_link("rtt=10ms,place=2,across=20ms"))) as b,
    ):
        reply = await b.messenger.request(a.peer_id, body, priority=Priority.ROUND)
        began = trio.current_time()
        await b.messenger.request(a.peer_id, b"hello")
        took_s = trio.current_time() - began

    assert reply == body
    assert took_s >= 0.02 + 0.01 + 0.02 - 2 * 0.005 - 0.004


@pytest.mark.parametrize("name", ["brownout", "satellite"])
async def test_peers_meet_over_the_worst_links(name):
    async with opened() as a, opened(of=a, throttling=Throttling(PROFILES[name])) as b:
        assert await b.messenger.request(a.peer_id, b"hello") == b"hello"


async def test_a_messenger_tells_what_its_link_carries_and_what_limits_it():
    async with opened() as a, opened(of=a, throttling=Throttling(caps=parse_caps(upload="8mbit", download="20mbit"))) as b:
        before = b.messenger.bandwidth()
        for _ in range(3):
            await b.messenger.request(a.peer_id, bytes(200_000), priority=Priority.ROUND)
        after = b.messenger.bandwidth()

    assert before == Bandwidth(None, None, 8e6, 20e6)
    assert 1e6 < after.upload_bps <= 8e6 * 1.35  # a limit lets what fits into the queue pass ahead of it
    assert after.download_bps > 1e6 and a.messenger.bandwidth().upload_limit_bps is None


async def test_messages_of_one_lane_can_be_delayed_and_the_others_are_not():
    link = parse_link("bulk.delay=300ms")
    async with opened() as a, opened(of=a, throttling=Throttling(link)) as b:
        began = trio.current_time()
        for _ in range(2):
            assert await b.messenger.request(a.peer_id, b"hello", priority=Priority.ROUND) == b"hello"
        took_s = trio.current_time() - began

    assert took_s >= 0.6
    assert Shaper(link).lane("control") is None
