"""The folder of a block store: what marks it as one, its lock, and files that are there whole or not at all."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

from legion_p2p.errors import DiskFullError, StoreError
from legion_p2p.files.locks import try_lock
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import reason_of
from legion_p2p.files.writing import is_full, sync_folder

HEADER = "legion_p2p block store 1\n"


class StoreFolder:
    """`make` is for the process that writes; `check` for every one that opens the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._n_drafts = 0
        self._lock_file: Any = None

    def close(self) -> None:
        """Let another process write."""
        if self._lock_file is not None:
            self._lock_file.close()

    def make(self) -> None:
        """Make what is missing, and lock it. Raises: StoreError, if it is another folder, or another process writes; OSError."""
        header = self.path / "STORE"
        if self.path.exists() and not header.exists() and any(entry.name != "lock" for entry in self.path.iterdir()):
            raise StoreError(f"{self.path} is not empty and not a block store: name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        for folder in ("blocks", "pins", "corrupt", "drafts"):
            (self.path / folder).mkdir(exist_ok=True)
        if not header.exists():
            os.replace(self.draft(HEADER.encode()), header)
            sync_folder(self.path)

    def _lock(self) -> None:
        self._lock_file = open(self.path / "lock", "wb")  # noqa: SIM115 (it stays open, for the lock)
        if not try_lock(self._lock_file):
            raise StoreError(f"another process writes to the store {self.path}; end that one, or name another store")

    def check(self) -> None:
        """Raises: StoreError, if it is no block store of this version; OSError."""
        header = self.path / "STORE"
        if not header.exists():
            raise StoreError(f"there is no block store in {self.path}")
        with open(header, encoding="ascii", errors="replace") as file:
            seen = file.read(100)
        if seen != HEADER:
            raise StoreError(f"{header} says {seen.strip()[:60]!r}, this version of legion_p2p knows {HEADER.strip()!r}")

    def remove_drafts(self) -> None:
        """Forget what a crash left half-written."""
        for draft in (self.path / "drafts").iterdir():
            draft.unlink()

    def draft(self, data: bytes | memoryview) -> Path:
        """A new file with these bytes, synced, to be renamed."""
        with self._mutex:
            self._n_drafts += 1
            draft = self.path / "drafts" / str(self._n_drafts)
        try:
            with open(draft, "wb", buffering=0) as file:
                view = memoryview(data).cast("B")
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        except BaseException:  # an interrupt as well: nobody else would remove the draft
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        return draft


def raise_as_store_error(failed: OSError, where: Path) -> NoReturn:
    """Raises: DiskFullError; StoreError."""
    if is_full(failed):
        raise DiskFullError(
            f"no space left on the disk of {where}; what is stored is unharmed: free some space there, or name another store"
        ) from failed
    raise StoreError(f"cannot use the block store {shown(where)}: {reason_of(failed)}") from failed
