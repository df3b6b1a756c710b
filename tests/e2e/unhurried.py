"""Runs an example that takes a fifth of a processor, for others to meet: `unhurried.py SCRIPT ARGUMENTS`."""

import runpy
import sys
import time
from typing import Any

import legion_p2p as legion

REST = 4  # seconds without work for each second of work

_step = legion.Optimizer.step
_worked_until = time.thread_time()


def step(self: legion.Optimizer, *args: Any, **how: Any) -> Any:
    global _worked_until
    result = _step(self, *args, **how)
    time.sleep(REST * (time.thread_time() - _worked_until))
    _worked_until = time.thread_time()
    return result


if __name__ == "__main__":
    legion.Optimizer.step = step  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
