"""Files that are mapped into memory."""

import contextlib
import mmap


def cool(data: bytes | memoryview) -> None:
    """Let the system have the memory that reading a mapped file took. What is read later comes from the file again."""
    mapped = data.obj if isinstance(data, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)
