"""Downloads on the wire: they wait while training sends, never quite stop, and end where nobody reads."""

import pytest
import trio

from legion_p2p.core.priority import CATCH_UP_WEIGHT, PIECE_BYTES, TRICKLE_BYTES, TRICKLE_S, Priority
from legion_p2p.net.counters import Counters
from legion_p2p.net.frames import FrameStream, UploadGate
from legion_p2p.net.limits import DOWNLOAD_STALL_S

DOWNLOAD = bytes(4 * PIECE_BYTES)


class Pipe:
    """What a FrameStream writes to: takes bytes while it is open."""

    def __init__(self) -> None:
        self.n_taken = 0
        self.opened = trio.Event()

    async def write(self, data: bytes) -> None:
        await self.opened.wait()
        self.n_taken += len(data)
        await trio.lowlevel.checkpoint()


def stream(pipe: Pipe, gate: UploadGate, lane: str = "bulk") -> FrameStream:
    return FrameStream(pipe, lane, Counters(None), gate)


async def test_a_download_waits_while_another_stream_has_bulk_to_send(autojump_clock):
    gate = UploadGate()
    to_newcomer, to_member = Pipe(), Pipe()
    downloads, pushes = stream(to_newcomer, gate), stream(to_member, gate)
    to_newcomer.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(downloads.write_queued)
        nursery.start_soon(pushes.write_queued)
        push = pushes.put(b"head", bytes(1000), Priority.ROUND)
        download = downloads.put(b"", DOWNLOAD, Priority.DOWNLOAD)
        await trio.sleep(10 * TRICKLE_S + TRICKLE_S / 2)
        assert to_newcomer.n_taken == 10 * TRICKLE_BYTES and not download.done.is_set()

        to_member.opened.set()
        await download.done.wait()
        assert push.done.is_set() and trio.current_time() < 11 * TRICKLE_S
        nursery.cancel_scope.cancel()
    assert to_newcomer.n_taken == len(DOWNLOAD)


async def test_bulk_behind_a_download_on_its_own_stream_does_not_hold_it_up(autojump_clock):
    gate = UploadGate()
    pipe = Pipe()
    one = stream(pipe, gate)
    pipe.opened.set()

    async with trio.open_nursery() as nursery:
        one.put(b"", DOWNLOAD, Priority.DOWNLOAD)
        behind = one.put(b"head", b"push", Priority.ROUND)
        nursery.start_soon(one.write_queued)
        await behind.done.wait()
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_who_does_not_read_a_download_loses_the_stream_and_the_place(autojump_clock):
    gate = UploadGate()
    one = stream(Pipe(), gate)
    download = one.put(b"", DOWNLOAD, Priority.DOWNLOAD)

    with pytest.raises(trio.TooSlowError):
        await one.write_queued()
    one.end()

    assert trio.current_time() == DOWNLOAD_STALL_S and download.done.is_set()


async def test_a_stream_that_ends_frees_the_way(autojump_clock):
    gate = UploadGate()
    one = stream(Pipe(), gate)
    one.put(b"", b"push", Priority.ROUND)
    assert await gate.wait(lambda: Priority.DOWNLOAD) == TRICKLE_BYTES

    one.end()

    assert await gate.wait(lambda: Priority.DOWNLOAD) == PIECE_BYTES


async def test_a_frame_of_a_higher_priority_goes_first_also_on_another_stream(autojump_clock):
    gate = UploadGate()
    slow, fast = Pipe(), Pipe()
    to_newcomer, to_member = stream(slow, gate), stream(fast, gate)
    slow.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_newcomer.write_queued)
        nursery.start_soon(to_member.write_queued)
        update = to_newcomer.put(b"", bytes(PIECE_BYTES), Priority.DOWNLOAD)
        to_member.put(b"head", bytes(1000), Priority.CATCH_UP)
        await trio.sleep(3 * TRICKLE_S + TRICKLE_S / 2)
        assert slow.n_taken == 3 * TRICKLE_BYTES

        fast.opened.set()
        await update.done.wait()
        assert trio.current_time() < 4 * TRICKLE_S
        nursery.cancel_scope.cancel()


async def test_what_is_urgent_goes_before_what_can_wait_on_its_own_stream(autojump_clock):
    gate = UploadGate()
    pipe, other = Pipe(), stream(Pipe(), gate)
    one = stream(pipe, gate)
    pipe.opened.set()
    other.put(b"head", b"a push that is stuck", Priority.ROUND)

    async with trio.open_nursery() as nursery:
        begun = one.put(b"", DOWNLOAD, Priority.DOWNLOAD)
        nursery.start_soon(one.write_queued)
        await trio.sleep(1.5 * TRICKLE_S)
        waiting = one.put(b"", DOWNLOAD, Priority.DOWNLOAD)
        push = one.put(b"head", b"push", Priority.ROUND)
        assert begun.begun and not begun.done.is_set()
        await push.done.wait()

        # What is begun is finished at once, for the push's sake; what is not begun is overtaken.
        assert begun.done.is_set() and not waiting.done.is_set() and trio.current_time() == 1.5 * TRICKLE_S
        nursery.cancel_scope.cancel()


async def test_a_download_gets_its_share_while_a_member_catches_up(autojump_clock):
    gate, n_pieces = UploadGate(), 8 * CATCH_UP_WEIGHT
    to_member, to_newcomer = Pipe(), Pipe()
    members, newcomers = stream(to_member, gate), stream(to_newcomer, gate)
    to_member.opened.set()
    to_newcomer.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(members.write_queued)
        nursery.start_soon(newcomers.write_queued)
        state = members.put(b"", bytes(n_pieces * PIECE_BYTES), Priority.CATCH_UP)
        newcomers.put(b"", bytes(n_pieces * PIECE_BYTES), Priority.DOWNLOAD)
        await state.done.wait()
        nursery.cancel_scope.cancel()

    assert trio.current_time() == 0
    assert 6 <= to_newcomer.n_taken / PIECE_BYTES <= 9
