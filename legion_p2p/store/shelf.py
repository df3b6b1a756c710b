"""Bytes that are needed seldom, in files instead of memory.

Each piece is a file without a name, mapped into memory: it takes no memory until it is read, the system may take back what was
read whenever it needs that, and the file is gone with the last reference to the piece, or with the process.
"""

import mmap
import tempfile
import weakref
from pathlib import Path

SMALLEST = 256 << 10  # bytes that are worth a file; a run has at most some hundred smaller pieces for each shard
MAX_PIECES = 16_384  # Linux allows a process 65,530 mappings, and torch and malloc need some


class FileShelf:
    """Where the disk is full, or there are too many pieces, they stay in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: on the disk to use; None: where the system keeps temporary files that outlive a restart, as those are on a
        disk and not in memory.
        """
        self._folder = folder if folder is not None else _disk_folder()
        self.n_pieces = 0

    def keep(self, data: bytes | memoryview) -> bytes | memoryview:
        """The same bytes, to be held instead of `data`."""
        if len(data) < SMALLEST or self.n_pieces >= MAX_PIECES:
            return data
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                view = memoryview(data).cast("B")
                while view:
                    view = view[file.write(view) :]
                mapped = mmap.mmap(file.fileno(), len(data))
        except OSError:
            return data
        self.n_pieces += 1
        weakref.finalize(mapped, self._gone).atexit = False
        return memoryview(mapped)

    def _gone(self) -> None:
        self.n_pieces -= 1


def _disk_folder() -> Path:
    lasting = Path("/var/tmp")
    return lasting if lasting.is_dir() else Path(tempfile.gettempdir())
