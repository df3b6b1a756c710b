"""QuickLock: one holder at a time, in the order of asking, and no yield while it is free."""

import random

import pytest
import trio
import trio.testing

from legion_p2p.concurrency.quick_lock import QuickLock


async def test_a_free_lock_is_had_without_another_task_running_in_between() -> None:
    lock, ran = QuickLock(), []

    async def other() -> None:
        ran.append("other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with lock:
            assert ran == []


async def test_those_that_wait_get_it_in_the_order_of_asking_and_one_that_gives_up_is_passed_over(
    autojump_clock: object,
) -> None:
    lock, had = QuickLock(), []

    async def hold(name: str, patience_s: float = 60.0) -> None:
        with trio.move_on_after(patience_s):
            async with lock:
                had.append(name)
                await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        for name, patience_s in (("a", 60.0), ("b", 0.5), ("c", 60.0), ("d", 60.0)):
            nursery.start_soon(hold, name, patience_s)
            await trio.testing.wait_all_tasks_blocked()

    assert had == ["a", "c", "d"]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_its_holders_do_there_are_no_more_than_allowed_and_it_comes_free(
    seed: int, limit: int, autojump_clock: object
) -> None:
    rng, lock, held = random.Random(seed), QuickLock(limit), []

    async def hold() -> None:
        await trio.sleep(rng.random())
        with trio.move_on_after(rng.random()):
            async with lock:
                held.append(None)
                try:
                    assert len(held) <= limit and lock.is_free == (len(held) < limit)
                    await trio.sleep(rng.choice([0.0, 0.1, 0.5]))
                finally:
                    held.pop()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(hold)
    with trio.fail_after(1.0):
        for _ in range(limit):
            await lock.acquire()
    assert not lock.is_free
