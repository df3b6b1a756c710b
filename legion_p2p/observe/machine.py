"""What this machine is doing, as far as it can be known: facts for those that decide."""

import os


def n_processors() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
