"""Weights and gradients between the training thread and the peer's."""

import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.messages.sharding import UnitStepped
from legion_p2p.core.sharding.plan import Unit
from legion_p2p.errors import ClosedError
from legion_p2p.services.sharding.service import UnitService
from legion_p2p.train.bridge import PeerAccess

T = TypeVar("T")

POLL_S = 0.2  # so that Ctrl+C gets through while waiting, and a peer that has left is noticed
LEFT = "this peer has left its run"


class UnitExchange:
    """What the training thread asks the network's thread for. Its methods are called in the training thread."""

    def __init__(self, thread: PeerAccess, units: UnitService) -> None:
        self._thread = thread
        self._units = units
        self.waited_s = 0.0
        """How long training has waited for others."""

    def pull(self, units: Sequence[Unit], step: int, *, exact: bool = False) -> "Future[Sequence[Tensor]]":
        """Begin to pull the weights of these."""

        async def pull_all() -> Sequence[Tensor]:
            pull = partial(self._units.client.pull, exact=exact)
            return await _all([(pull, unit.index, step) for unit in units])

        return self._begin(pull_all)

    def push(self, units: Sequence[Unit], step: int, tokens: int, gradients: Sequence[Tensor]) -> "Future[Sequence[UnitStepped]]":
        """Begin to push the gradients of these; done when their steps are made."""

        async def push_all() -> Sequence[UnitStepped]:
            pairs = zip(units, gradients, strict=True)
            return await _all([(self._units.client.push, unit.index, step, tokens, gradient) for unit, gradient in pairs])

        return self._begin(push_all)

    def run(self, fn: Callable[[], Awaitable[T]]) -> T:
        """The result of `fn` in the network's thread. Raises: ClosedError."""
        return self.wait(self._begin(fn))

    def wait(self, future: "Future[T]") -> T:
        """Its result. Raises: ClosedError, after the peer has left."""
        began = time.perf_counter()
        try:
            while True:
                try:
                    return future.result(POLL_S)
                except TimeoutError:
                    if future.done():
                        raise
                    if self._thread.engine.mailbox.closed is not None:
                        raise self._thread.closed(LEFT) from self._thread.cause
        finally:
            self.waited_s += time.perf_counter() - began

    def _begin(self, fn: Callable[[], Awaitable[T]]) -> "Future[T]":
        if self._thread.engine.mailbox.closed is not None or not self._thread.alive:
            raise self._thread.closed(LEFT) from self._thread.cause
        future: Future[T] = Future()

        async def run() -> None:
            try:
                future.set_result(await fn())
            except Exception as failed:
                future.set_exception(failed)
            finally:
                if not future.done():
                    future.set_exception(ClosedError(LEFT))

        def start() -> None:
            self._units.nursery.start_soon(run)

        self._thread.post(start)
        return future


async def _all(jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of (function, arguments...), which run at the same time. Raises: what the first one that fails does."""
    if len(jobs) == 1:
        return [await jobs[0][0](*jobs[0][1:])]
    results: list[Any] = [None] * len(jobs)

    async def run(i: int) -> None:
        results[i] = await jobs[i][0](*jobs[i][1:])

    async with open_flat_nursery() as nursery:
        for i in range(len(jobs)):
            nursery.start_soon(run, i)
    return results
