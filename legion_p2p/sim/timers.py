"""What happens when in a simulated world: one heap, and one task that sleeps until the next moment.

Most of what travels arrives together with something else: an update at all members, their answers at its owner. A sleep of trio's
own would cost each of them a cancel scope and an exception.
"""

import heapq
import math
from collections.abc import Callable

import trio

from legion_p2p.concurrency.notify import Notify


class Timers:
    """Calls functions, and wakes tasks, in virtual time; of the same moment, in the order in which it was asked for them."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._n_asked = 0
        self._sleeps_until = -math.inf
        self._earlier = Notify()

    def at(self, when: float, fn: Callable[[], object]) -> None:
        """Call `fn` then."""
        self._n_asked += 1
        heapq.heappush(self._due, (when, self._n_asked, fn))
        if when < self._sleeps_until:
            self._earlier.notify()

    async def sleep_until(self, when: float) -> None:
        """For a task that ends with the world."""
        task = trio.lowlevel.current_task()
        is_waiting = True

        def wake() -> None:
            if is_waiting:
                trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal is_waiting
            is_waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        self.at(when, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Do it, until cancelled."""
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self._sleeps_until = self._due[0][0] if self._due else math.inf
            with trio.move_on_at(self._sleeps_until):
                await self._earlier.wait()
