"""The clocks of this machine."""

import sys
import time


def running_clock() -> float:
    """Seconds on a clock that nobody sets, and that runs on while the machine sleeps, as far as the system has one."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()
