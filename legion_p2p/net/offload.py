"""Running arithmetic and disk work beside the event loop."""

from collections.abc import Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")

MAX_WORKERS = 2  # the training thread wants the CPU too


class ThreadOffload:
    """The `Offload` port: a worker thread, at most `max_workers` at once. Torch and hashlib release the GIL in there."""

    def __init__(self, max_workers: int = MAX_WORKERS) -> None:
        self._limiter = trio.CapacityLimiter(max_workers)

    async def __call__(self, fn: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)
