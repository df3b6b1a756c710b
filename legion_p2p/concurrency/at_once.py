"""Running a coroutine that has nothing to wait for, without a task of its own: that costs as much as little arithmetic."""

from collections.abc import Coroutine
from typing import Any


def run_at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, here and now.

    Raises: RuntimeError, if it waits for something after all: its caller was to make sure that it does not.
    """
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError(f"{work} has to wait")
