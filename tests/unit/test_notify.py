"""Notify: who is woken by a notification, and who is not."""

import trio
import trio.testing

from legion_p2p.concurrency.notify import Notify


async def test_all_that_wait_now_are_woken_once_and_nobody_that_comes_later(autojump_clock: object) -> None:
    notify, woken = Notify(), []

    async def wait(name: str) -> None:
        await notify.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        notify.notify()  # nobody waits: it is not kept
        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []

        notify.notify()
        nursery.start_soon(wait, "c")
        await trio.testing.wait_all_tasks_blocked()

        assert sorted(woken) == ["a", "b"]
        notify.notify()
    assert sorted(woken) == ["a", "b", "c"]


async def test_one_that_gives_up_waiting_takes_no_notification_from_the_others(autojump_clock: object) -> None:
    notify = Notify()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify.wait)
        with trio.move_on_after(1.0):
            await notify.wait()
        notify.notify()  # or the nursery would never end
