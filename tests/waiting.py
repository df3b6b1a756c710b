"""Waiting for what should come soon. The machine may be busy with something else: how long it took tells nothing."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 120.0  # for anything that takes seconds on an idle machine


def eventually(check: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """What `check` returns, once that is true. Raises: AssertionError, if it is not in time."""
    deadline = time.monotonic() + within_s
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {within_s} s: {check}")
        time.sleep(0.02)
