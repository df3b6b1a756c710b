"""A lock that costs nothing while nobody else holds it: each yield of trio's is one more pass of the event loop."""

import trio


class QuickLock:
    """Held by at most `limit` tasks at a time, as a rule by one. Granted in the order of asking, and without a yield to other
    tasks when it is free."""

    def __init__(self, limit: int = 1) -> None:
        self._n_free = limit
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def is_free(self) -> bool:
        """Whoever asks for it now need not wait."""
        return self._n_free > 0

    async def acquire(self) -> None:
        if self._n_free > 0:
            self._n_free -= 1
        else:
            await self._waiting.park()  # `release` hands it over

    def release(self) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._n_free += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
