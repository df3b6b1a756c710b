"""Waking tasks that wait for anything to change."""

import trio


class Bell:
    """`ring` wakes all who `wait` now. What is rung while nobody waits is not kept: look first, then wait."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()
