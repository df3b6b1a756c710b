"""Nurseries whose single failure leaves as itself, not as a group of one: callers can write `except JoinError`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

import trio

T_contra = TypeVar("T_contra", contravariant=True)


class TaskStatus(Protocol[T_contra]):
    """What `nursery.start` hands to a task: trio's own type, which the stubs that type checkers find do not know."""

    def started(self, value: T_contra, /) -> None:
        """The task runs, and `nursery.start` returns `value`."""


Failed = Callable[[BaseException], None]


@asynccontextmanager
async def open_flat_nursery(on_failure: Failed | None = None) -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but one failure is raised bare. Several stay a group.

    `on_failure` is called at once with a task that fails, before the others are cancelled, because their cleanup may take long.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery if on_failure is None else cast(trio.Nursery, _Telling(nursery, on_failure))
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        failures = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
        if len(failures) == 1 and len(leaves) == 1:
            raise failures[0] from failures[0].__cause__
        raise


class _Telling:
    """A nursery that tells of failures: what is used of one, and no more."""

    def __init__(self, nursery: trio.Nursery, on_failure: Failed) -> None:
        self.cancel_scope = nursery.cancel_scope
        self._nursery = nursery
        self._on_failure = on_failure

    def start_soon(self, fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        self._nursery.start_soon(self._watched, fn, args, {}, name=name or fn)

    async def start(self, fn: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> Any:
        async def started(task_status: Any) -> None:
            await self._watched(fn, args, {"task_status": task_status})

        return await self._nursery.start(started, name=name or fn)

    async def _watched(self, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], more: dict[str, Any]) -> None:
        try:
            await fn(*args, **more)
        except Exception as failed:
            self._on_failure(root_of(failed))
            raise


def root_of(failed: BaseException) -> BaseException:
    """The failure itself; of a group the first one that is no cancellation."""
    if not isinstance(failed, BaseExceptionGroup):
        return failed
    leaves = _leaves(failed)
    return next((leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)), leaves[0])


def _leaves(group: BaseExceptionGroup) -> "list[BaseException]":
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found
