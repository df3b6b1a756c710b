"""Locks on open files: the first process that asks has it, until it closes the file or ends."""

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
msvcrt: Any
try:
    import msvcrt
except ImportError:
    msvcrt = None

CAN_LOCK = fcntl is not None or msvcrt is not None
BYTE = 1 << 30  # that Windows locks: beyond the end, because others may not even read a byte that is locked there


def try_lock(file: IO[bytes]) -> bool:
    """Whether this process has the lock now; True as well where the system or the file system has none."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks (some NFS): better unlocked than unusable
            return True
    elif msvcrt is not None:
        at = file.tell()
        file.seek(BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(at)
    return True
