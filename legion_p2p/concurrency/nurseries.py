"""Nurseries whose single failure leaves as itself, not as a group of one: callers can write `except JoinError`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

T_contra = TypeVar("T_contra", contravariant=True)


class TaskStatus(Protocol[T_contra]):
    """What `nursery.start` hands to a task: trio's own type, which the stubs that type checkers find do not know."""

    def started(self, value: T_contra, /) -> None:
        """The task runs, and `nursery.start` returns `value`."""


@asynccontextmanager
async def open_flat_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but one failure is raised bare. Several stay a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        failures = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
        if len(failures) == 1 and len(leaves) == 1:
            raise failures[0] from failures[0].__cause__
        raise


def _leaves(group: BaseExceptionGroup) -> "list[BaseException]":
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found
