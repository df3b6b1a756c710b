"""How much memory this process has, and may have: by the machine, by its control group (a container), by its own limits."""

import contextlib
import ctypes
import errno
import re
from pathlib import Path

import msgspec
import psutil

_CGROUP_MAX = Path("/sys/fs/cgroup/memory.max")
_CGROUP_NOW = Path("/sys/fs/cgroup/memory.current")
_CGROUP1_MAX = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP1_NOW = Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")
PROGRAM_BYTES = 415_000_000
"""What a peer takes besides its model and what it computes: Python, torch, libp2p, the text. Measured with the smallest
preset."""

_WORDS = re.compile(r"allocate memory|out of memory|not enough memory|failed to map segment", re.IGNORECASE)
_TRIED = re.compile(r"tried to allocate (?P<amount>[0-9.]+ ?[KMGT]?i?B(?:ytes)?|[0-9]+ bytes)", re.IGNORECASE)
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of malloc.h
_NO_LIMIT = 1 << 60  # version 1 of control groups writes a number about as large where there is none


class FreeMemory(msgspec.Struct, frozen=True):
    """Bytes that the process may still take, and what bounds them, in words."""

    n_bytes: int
    bound_by: str


def is_out_of_memory(bad: BaseException) -> bool:
    """Whether something failed because there was too little memory, of this machine or of its GPU."""
    if isinstance(bad, MemoryError) or (isinstance(bad, OSError) and bad.errno == errno.ENOMEM):
        return True
    return isinstance(bad, RuntimeError | ImportError | OSError) and _WORDS.search(str(bad)) is not None


def wanted_memory(bad: BaseException) -> str:
    """How much was asked for when there was too little, in words; empty where that is not known."""
    found = _TRIED.search(str(bad))
    return found["amount"] if found else ""


def give_back_freed_memory() -> None:
    """From now on, give large blocks back to the system as soon as they are freed, for a process that is one peer.

    A round's tensors are as long as a shard and live for a moment, in several threads. The C library keeps what they took, in
    places that nothing else fits into: with 26 million parameters 2 to 4 bytes of each were measured.
    """
    with contextlib.suppress(OSError, AttributeError):  # of another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 4 << 20)
        mallopt(_ARENA_MAX, 2)


def used_memory() -> int:
    """Bytes of memory that the process has now."""
    return int(psutil.Process().memory_info().rss)


def free_memory() -> FreeMemory:
    """The least of what the machine, the control group and the process's own limit leave."""
    bounds = [FreeMemory(psutil.virtual_memory().available, "the machine's free memory")]
    bounds += filter(None, (_by_limit(), _by_group(_CGROUP_MAX, _CGROUP_NOW), _by_group(_CGROUP1_MAX, _CGROUP1_NOW)))
    return min(bounds, key=lambda bound: bound.n_bytes)


def _by_limit() -> FreeMemory | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return FreeMemory(limit - int(psutil.Process().memory_info().vms), "its limit on address space, ulimit -v")


def _by_group(limit: Path, now: Path) -> FreeMemory | None:
    with contextlib.suppress(OSError, ValueError):
        n_bytes = int(limit.read_text())  # "max": no limit, and no number
        if n_bytes < _NO_LIMIT:
            return FreeMemory(n_bytes - int(now.read_text()), "the limit of its container or control group")
    return None
