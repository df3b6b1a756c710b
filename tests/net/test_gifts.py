"""Downloads on the wire: they wait while training sends, never quite stop, and end where nobody reads."""

import pytest
import trio

from legion_p2p.core.contact import LAST
from legion_p2p.net.frames import PIECE_BYTES, TRICKLE_BYTES, TRICKLE_S, FrameStream, RightOfWay
from legion_p2p.net.limits import GIFT_STALL_S

GIFT = bytes(4 * PIECE_BYTES)


class Pipe:
    """What a FrameStream writes to: takes bytes while it is open."""

    def __init__(self) -> None:
        self.muxed_stream = self
        self.n_taken = 0
        self.opened = trio.Event()

    async def write(self, data: bytes) -> None:
        await self.opened.wait()
        self.n_taken += len(data)
        await trio.lowlevel.checkpoint()


def stream(pipe: Pipe, way: RightOfWay, lane: str = "bulk") -> FrameStream:
    return FrameStream(pipe, lane, lambda n: None, lambda n: None, way)


async def test_a_download_waits_while_another_stream_has_bulk_to_send(autojump_clock):
    way = RightOfWay()
    to_newcomer, to_member = Pipe(), Pipe()
    gifts, pushes = stream(to_newcomer, way), stream(to_member, way)
    to_newcomer.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gifts.write_queued)
        nursery.start_soon(pushes.write_queued)
        push = pushes.put(b"head", bytes(1000))
        gift = gifts.put(b"", GIFT, rank=LAST)
        await trio.sleep(10 * TRICKLE_S + TRICKLE_S / 2)
        assert to_newcomer.n_taken == 10 * TRICKLE_BYTES and not gift.done.is_set()

        to_member.opened.set()
        await gift.done.wait()
        assert push.done.is_set() and trio.current_time() < 11 * TRICKLE_S
        nursery.cancel_scope.cancel()
    assert to_newcomer.n_taken == len(GIFT)


async def test_bulk_behind_a_download_on_its_own_stream_does_not_hold_it_up(autojump_clock):
    way = RightOfWay()
    pipe = Pipe()
    one = stream(pipe, way)
    pipe.opened.set()

    async with trio.open_nursery() as nursery:
        one.put(b"", GIFT, rank=LAST)
        behind = one.put(b"head", b"push")
        nursery.start_soon(one.write_queued)
        await behind.done.wait()
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_who_does_not_read_a_download_loses_the_stream_and_the_place(autojump_clock):
    way = RightOfWay()
    one = stream(Pipe(), way)
    gift = one.put(b"", GIFT, rank=LAST)

    with pytest.raises(trio.TooSlowError):
        await one.write_queued()
    one.end()

    assert trio.current_time() == GIFT_STALL_S and gift.done.is_set()


async def test_a_stream_that_ends_frees_the_way(autojump_clock):
    way = RightOfWay()
    one = stream(Pipe(), way)
    one.put(b"", b"push")
    assert await way.wait(lambda: LAST) == TRICKLE_BYTES

    one.end()

    assert await way.wait(lambda: LAST) == PIECE_BYTES


async def test_a_frame_of_a_lower_rank_goes_first_also_on_another_stream(autojump_clock):
    way = RightOfWay()
    slow, fast = Pipe(), Pipe()
    to_newcomer, to_member = stream(slow, way), stream(fast, way)
    slow.opened.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_newcomer.write_queued)
        nursery.start_soon(to_member.write_queued)
        update = to_newcomer.put(b"", bytes(PIECE_BYTES), rank=2)
        to_member.put(b"head", bytes(1000), rank=1)
        await trio.sleep(3 * TRICKLE_S + TRICKLE_S / 2)
        assert slow.n_taken == 3 * TRICKLE_BYTES

        fast.opened.set()
        await update.done.wait()
        assert trio.current_time() < 4 * TRICKLE_S
        nursery.cancel_scope.cancel()


async def test_what_is_urgent_goes_before_what_can_wait_on_its_own_stream(autojump_clock):
    way = RightOfWay()
    pipe, other = Pipe(), stream(Pipe(), way)
    one = stream(pipe, way)
    pipe.opened.set()
    other.put(b"head", b"a push that is stuck")

    async with trio.open_nursery() as nursery:
        begun = one.put(b"", GIFT, rank=LAST)
        nursery.start_soon(one.write_queued)
        await trio.sleep(1.5 * TRICKLE_S)
        waiting = one.put(b"", GIFT, rank=LAST)
        push = one.put(b"head", b"push")
        assert begun.begun and not begun.done.is_set()
        await push.done.wait()

        # What is begun is finished at once, for the push's sake; what is not begun is overtaken.
        assert begun.done.is_set() and not waiting.done.is_set() and trio.current_time() == 1.5 * TRICKLE_S
        nursery.cancel_scope.cancel()
