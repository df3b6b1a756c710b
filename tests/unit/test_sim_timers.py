"""What happens when in a simulated world."""

import trio
import trio.testing

from legion_p2p.sim.timers import Timers


async def test_tasks_and_functions_come_at_their_time_and_in_the_order_of_asking(autojump_clock: trio.testing.MockClock) -> None:
    timers, log = Timers(), []

    async def sleeper(name: str, when: float) -> None:
        await timers.sleep_until(when)
        log.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as sleepers:
            for name, when in (("late", 9.0), ("early", 2.0)):
                sleepers.start_soon(sleeper, name, when)
                await trio.testing.wait_all_tasks_blocked()
            timers.at(5.0, lambda: log.append(("first", trio.current_time())))
            timers.at(5.0, lambda: log.append(("second", trio.current_time())))
        nursery.cancel_scope.cancel()

    assert log == [("early", 2.0), ("first", 5.0), ("second", 5.0), ("late", 9.0)]


async def test_a_task_that_gives_up_is_not_woken_later(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        with trio.move_on_after(1.0) as scope:
            await timers.sleep_until(5.0)
        await trio.sleep(9.0)
        nursery.cancel_scope.cancel()

    assert scope.cancelled_caught
