"""Waking tasks that wait for anything to change."""

import trio


class Notify:
    """`notify` wakes all tasks in `wait` now. A notification that nobody waits for is not kept: check first, then wait."""

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # of those that wait now; most notifications find nobody

    def notify(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
