"""Letting other programs go first: the threads that train get a lower priority of the operating system.

The network's threads keep theirs: they are Python's own. Other threads belong to torch's pools, which compute for the thread
that trains.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

NICE = 5  # a third of what a program at the usual priority gets (335 to 1024), where both want all of a processor
BELOW_NORMAL = -1  # of Windows


def lower_priority() -> bool:
    """Lower that of the calling thread, and of torch's threads. Threads that these start inherit it. False: not possible here.

    On macOS it holds for the whole process.
    """
    if sys.platform == "win32":
        return _lower_on_windows()
    mine = threading.get_native_id()
    others = {thread.native_id for thread in threading.enumerate()} - {mine}
    try:
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    except OSError:  # no Linux
        threads = [0]
    lowered = 0
    for thread in threads:
        if thread not in others:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.getpriority(os.PRIO_PROCESS, thread) < NICE:
                    os.setpriority(os.PRIO_PROCESS, thread, NICE)
                lowered += 1
    return lowered > 0


def _lower_on_windows() -> bool:
    import ctypes

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (only Windows has it, and mypy looks for it elsewhere)
    return bool(kernel.SetThreadPriority(kernel.GetCurrentThread(), BELOW_NORMAL))
