"""Small files with secrets: made once, readable by their owner only, and refused where others can read them."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from legion_p2p.errors import StoreError

PRIVATE = 0o600


def make_folders(folder: Path) -> None:
    """Make the folder and those above it that are missing, for their owner only. Raises: OSError."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def create(path: Path, text: str) -> None:
    """Write it elsewhere with its final permissions, then link it into place, unless another process was faster.

    Raises: OSError.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(file, "w", encoding="ascii") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def check_private(file: BinaryIO, path: Path, what: str) -> None:
    """Raises: StoreError, if others than the owner can read `what` is in the file."""
    mode = os.fstat(file.fileno()).st_mode
    if os.name == "posix" and mode & 0o077:
        raise StoreError(f"the {what} file {path} can be read by others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}")
