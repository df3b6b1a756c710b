"""Transfers that share a link take turns: the smallest first, and none waits for ever."""

import trio

from legion_p2p.concurrency.semaphore import Turns


async def sent_in_order(turns: Turns, sizes: list[int], log: list[int], n_cancelled: int = 0) -> None:
    async def send(size: int) -> None:
        async with turns.take(size):
            log.append(size)
            await trio.sleep(size)

    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(send, size)
        if n_cancelled:
            await trio.sleep(n_cancelled)
            nursery.cancel_scope.cancel()


async def test_the_smallest_go_first_one_by_one_where_they_are_large(autojump_clock):
    log: list[int] = []
    began = trio.current_time()

    await sent_in_order(Turns(10), [40, 20, 30], log)

    assert log == [20, 30, 40] and trio.current_time() - began == 90


async def test_small_ones_go_together(autojump_clock):
    log: list[int] = []
    began = trio.current_time()

    await sent_in_order(Turns(10), [4, 5, 1, 0, 0], log)

    assert log == [0, 0, 1, 4, 5] and trio.current_time() - began == 5


async def test_who_gives_up_holds_up_nobody(autojump_clock):
    turns, log = Turns(10), []

    await sent_in_order(turns, [20, 30, 40], log, n_cancelled=25)
    await sent_in_order(turns, [50], log)

    assert log == [20, 30, 50]
