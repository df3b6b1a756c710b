"""Opening files that a user names.

A file is opened without waiting for anybody (a named pipe without a writer would block for ever), looked at when it is open, so
that nothing changes between the look and the use, and read no further than a limit.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from legion_p2p.errors import StoreError
from legion_p2p.files.content import decode_text
from legion_p2p.files.paths import FileKind, kind_of_mode, shown

PIECE_BYTES = 1 << 16  # that are read at a time

_READABLE_ONCE = (FileKind.PIPE, FileKind.STREAM_DEVICE)


@contextmanager
def opened(path: Path, *, streams: bool = False) -> Iterator[BufferedReader]:
    """A file, open for reading. `streams`: a pipe will do as well, and the terminal, as in `--config <(command)`.

    Raises: StoreError, naming the file and what stands there instead. What reading in the block fails with becomes one, too.
    """
    try:
        with _open(path, streams) as file:
            yield file
    except OSError as failed:
        raise StoreError(f"cannot read {shown(path)}: {reason_of(failed)}") from failed


def read_limited(path: Path, max_bytes: int) -> bytes:
    """All of a small file, or of a pipe. Raises: StoreError, also where it is larger than `max_bytes`."""
    with opened(path, streams=True) as file:
        pieces, n_left = [], max_bytes + 1  # a read of many bytes makes room for all of them before it knows how many there are
        while n_left and (piece := file.read(min(n_left, PIECE_BYTES))):
            pieces.append(piece)
            n_left -= len(piece)
    raw = b"".join(pieces)
    if len(raw) > max_bytes:
        raise StoreError(f"{shown(path)} is too large for such a file: it may have at most {max_bytes} bytes")
    return raw


def read_tail(path: Path, max_bytes: int) -> bytes:
    """The end of a file of lines, whole lines only, of at most `max_bytes`. Raises: StoreError."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - max_bytes))
        raw = file.read(max_bytes)
    return raw if size <= max_bytes else raw.partition(b"\n")[2]


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a small file that a person or another command wrote. Raises: StoreError."""
    raw = read_limited(path, max_bytes)
    try:
        return decode_text(raw)
    except ValueError as bad:
        raise StoreError(f"{shown(path)}: {bad}") from bad


def reason_of(failed: OSError) -> str:
    """Why the system refused, in its words but for the few that mislead."""
    if isinstance(failed, FileNotFoundError):
        return "there is no such file or folder"
    if isinstance(failed, PermissionError):
        return "permission denied; look who owns it, and as which user this runs"
    return (failed.strerror or str(failed)).lower()


def _open(path: Path, streams: bool) -> BufferedReader:
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        kind = kind_of_mode(os.fstat(fd).st_mode)
        if kind is not FileKind.FILE and not (streams and kind in _READABLE_ONCE):
            raise StoreError(f"{shown(path)} is {kind.value}, not a file")
        if kind is not FileKind.FILE and hasattr(os, "set_blocking"):
            os.set_blocking(fd, True)
        return os.fdopen(fd, "rb")
    except BaseException:  # an interrupt as well: nobody else would close it
        os.close(fd)
        raise
