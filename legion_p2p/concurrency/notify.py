"""Waking tasks that wait for anything to change."""

import trio


class Notify:
    """`notify` wakes all tasks in `wait` now. A notification that nobody waits for is not kept: check first, then wait."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()
