"""Names of files as people write them, and what stands under such a name.

Every command, option, file format and Python argument that names a file goes through `user_path`, so that `~`, blanks, and names
that are no UTF-8 mean the same everywhere.
"""

import os
import stat
from enum import Enum
from pathlib import Path

from legion_p2p.errors import StoreError, UsageError

MAX_NAME_BYTES = 255  # of one part of a path, on every usual file system

_WINDOWS_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789")]
)
_WINDOWS_FORBIDDEN = '<>"|?*'


class FileKind(Enum):
    """What stands under a name, links followed. The values are what error messages call it."""

    MISSING = "missing"
    FILE = "a file"
    FOLDER = "a folder"
    PIPE = "a named pipe"
    SOCKET = "a socket"
    STREAM_DEVICE = "a device"
    DISK_DEVICE = "a disk"


def user_path(name: str | os.PathLike[str], *, windows: bool = os.name == "nt") -> Path:
    """The path that a person means by `name`: `~` and `~user` are home folders, blanks belong to the name.

    Raises: UsageError, if no file can have that name here, or if there is no such home folder.
    """
    text = os.fspath(name)
    if not text:
        raise UsageError("an empty name names no file")
    if "\0" in text:
        raise UsageError(f"{shown(text)}: no file name contains a zero byte")
    if windows:
        _check_windows_name(text)
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as unknown:
            raise UsageError(f"{shown(text)}: the home folder is not known here; set HOME, or write the whole path") from unknown
    if not windows and any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise UsageError(f"{shown(text)[:80]}...: a name of more than {MAX_NAME_BYTES} bytes")
    return path


def shown(name: str | os.PathLike[str]) -> str:
    """A name as messages print it: on one line, without control characters or bytes that are no text."""
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(name))


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is no UTF-8, as Python carries it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def user_data_folder() -> Path:
    """The folder for this user's keys and stores. Raises: UsageError, if the user has no home folder."""
    import platformdirs

    try:
        folder = Path(platformdirs.user_data_dir("legion_p2p"))
    except RuntimeError:  # newer versions say so themselves
        folder = Path()
    if not folder.is_absolute():  # an unknown user without HOME: `~` stays as it is, and would be made in the working folder
        raise UsageError("this user has no home folder: set HOME, or name the files with --identity FILE and --store FOLDER")
    return folder


def kind_of(path: Path) -> FileKind:
    """What stands there. Raises: StoreError, if that cannot be found out: permissions, or links in a circle."""
    try:
        return kind_of_mode(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return FileKind.MISSING
    except OSError as failed:
        raise StoreError(f"cannot look at {shown(path)}: {failed.strerror or failed}") from failed


def kind_of_mode(mode: int) -> FileKind:
    """The kind that a mode of `os.stat` says."""
    tests = (
        (stat.S_ISREG, FileKind.FILE), (stat.S_ISDIR, FileKind.FOLDER), (stat.S_ISFIFO, FileKind.PIPE),
        (stat.S_ISSOCK, FileKind.SOCKET),
        (stat.S_ISCHR, FileKind.STREAM_DEVICE), (stat.S_ISBLK, FileKind.DISK_DEVICE),
    )  # fmt: skip
    return next((kind for is_kind, kind in tests if is_kind(mode)), FileKind.STREAM_DEVICE)


def _check_windows_name(text: str) -> None:
    _, _, rest = text.rpartition(":\\") if text[1:3] == ":\\" else ("", "", text)
    for part in rest.replace("\\", "/").split("/"):
        bad = sorted(set(part) & set(_WINDOWS_FORBIDDEN + ":"))
        if bad:
            raise UsageError(f"{shown(text)}: a file name on Windows cannot contain {' '.join(bad)}")
        if part.partition(".")[0].strip().upper() in _WINDOWS_DEVICES:
            raise UsageError(f"{shown(text)}: {part} is the name of a device on Windows")
        if part not in (".", "..") and part != part.rstrip(" ."):
            raise UsageError(f"{shown(text)}: a file name on Windows cannot end in a blank or a dot")
