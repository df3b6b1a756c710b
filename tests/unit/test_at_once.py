"""Running a coroutine without a task."""

import pytest
import trio

from legion_p2p.concurrency.at_once import run_at_once
from legion_p2p.concurrency.quick_lock import QuickLock


async def test_what_has_nothing_to_wait_for_is_done_at_once_and_lets_go_of_what_it_held() -> None:
    lock, done = QuickLock(), []

    async def work() -> None:
        async with lock:
            done.append("work")

    run_at_once(work())

    assert done == ["work"] and lock.is_free


async def test_what_has_to_wait_is_a_mistake_and_is_ended() -> None:
    lock = QuickLock()

    async def work() -> None:
        async with lock:
            await trio.lowlevel.checkpoint()

    with pytest.raises(RuntimeError, match="has to wait"):
        run_at_once(work())
    assert lock.is_free


async def test_what_it_raises_reaches_the_caller() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_at_once(work())
