"""What process 1 of a container owes the others: it reaps processes whose parents have ended, or they stay as zombies.

Nobody waits for those. Children of our own are waited for by whoever started them, at once; what is still a zombie one look later
is an orphan. Where process 1 is an init such as tini, or there is no /proc, there is nothing to do.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

LOOK_EVERY_S = 2.0


def reap_orphans_as_process_one() -> None:
    """In a thread that lives as long as this process, if it is process 1."""
    if os.getpid() == 1:
        threading.Thread(target=_reap_for_ever, name="reaper", daemon=True).start()


def _reap_for_ever() -> None:
    before: set[int] = set()
    while True:
        time.sleep(LOOK_EVERY_S)
        before = reap(before)


def reap(before: set[int], tasks: Path = Path("/proc/self/task")) -> set[int]:
    """Reap those of our zombies that were zombies `before`; the others are left for the next look."""
    now = {pid for pid in _children(tasks) if _is_zombie(pid)}
    for pid in now & before:
        with contextlib.suppress(ChildProcessError):  # its parent has waited for it after all
            os.waitpid(pid, os.WNOHANG)
    return now - before


def _children(tasks: Path) -> list[int]:
    pids: list[int] = []
    for children in tasks.glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            pids += map(int, children.read_text().split())
    return pids


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
