"""Replacing files, whole or not at all.

What stands under the name is looked at first: links are followed, a pipe or a device is written to, a folder or a disk is
refused. The bytes go to a draft beside the file, which takes its place at the end with the permissions of the one before, and
which is removed on every other way out. Drafts of processes that were killed are removed by the next one.
"""

import contextlib
import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from legion_p2p.errors import DiskFullError, StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown
from legion_p2p.files.reading import reason_of

_DRAFT = re.compile(r"\.legion-(?P<name>[0-9a-f]{12})-(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.part")
_ZEROS_AT_A_TIME = 1 << 20
_TO_STREAM = (FileKind.PIPE, FileKind.STREAM_DEVICE)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which is at `path` when the block has ended without an exception.

    Raises: StoreError; DiskFullError. What writing in the block fails with becomes one of them.
    """
    with telling(path):
        kind = kind_of(path)
        if kind in _TO_STREAM:
            with open(path, "wb", buffering=0) as stream:
                yield stream
            return
        with _draft_for(check_target(path)) as file:
            yield file


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file by these bytes. Raises: StoreError; DiskFullError."""
    with replacing(path) as file:
        write_all(file, data)


def write_all(file: IO[bytes], data: bytes | bytearray | memoryview) -> None:
    """Write every byte; a pipe or a device takes as many at a time as it likes. Raises: OSError."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def check_target(path: Path) -> Path:
    """The regular file that writing to `path` replaces or makes, links followed.

    Raises: StoreError, if something stands there that is to stay as it is.
    """
    kind = kind_of(path)
    if kind not in (FileKind.FILE, FileKind.MISSING):
        raise StoreError(f"{shown(path)} is {kind.value}, and stays as it is; name a file")
    target = Path(os.path.realpath(path))
    if kind is FileKind.FILE and not os.access(target, os.W_OK):
        raise StoreError(f"{shown(path)} may not be written: permission denied; name another file")
    return target


def make_folder(path: Path) -> Path:
    """The folder, made where it is missing. Raises: StoreError; DiskFullError."""
    with telling(path):
        kind = kind_of(path)
        if kind not in (FileKind.FOLDER, FileKind.MISSING):
            raise StoreError(f"{shown(path)} is {kind.value}, not a folder; name another folder")
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turns what the system refuses into an error that names the file and says what to do."""
    try:
        yield
    except OSError as failed:
        if is_full(failed):
            raise DiskFullError(f"no space left for {shown(path)}; free some space there, or name another place") from failed
        raise StoreError(f"cannot write {shown(path)}: {reason_of(failed)}") from failed


def take_room(file: IO[bytes], n_bytes: int) -> None:
    """Let an empty file have this many bytes on the disk, not only in its length. Raises: OSError, if they are not there."""
    try:
        os.posix_fallocate(file.fileno(), 0, max(1, n_bytes))
        return
    except AttributeError:  # not on macOS and Windows
        pass
    except OSError as failed:
        if failed.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # some file systems
            raise
    zeros = bytes(min(n_bytes, _ZEROS_AT_A_TIME))
    for at in range(0, n_bytes, _ZEROS_AT_A_TIME):
        file.write(zeros[: n_bytes - at])
    file.flush()


def is_full(failed: OSError) -> bool:
    """Whether the disk, or this user's share of it, has no room left; or the file may not grow (`ulimit -f`)."""
    return failed.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync_folder(folder: Path) -> None:
    """Let renames in it survive a power failure. Raises: OSError."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as refused:
        if refused.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that do not sync folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _draft_for(target: Path) -> Iterator[IO[bytes]]:
    _sweep(target)
    draft = target.with_name(f"{_prefix(target)}{os.getpid()}-{os.urandom(4).hex()}.part")
    file = open(draft, "xb")  # noqa: SIM115 (closed below, before it is renamed)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _take_over_rights(draft, target)
        os.replace(draft, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _take_over_rights(draft: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(target)
        os.chmod(draft, before.st_mode & 0o7777)
        if hasattr(os, "chown"):
            with contextlib.suppress(PermissionError):  # only root may give a file to another user
                os.chown(draft, before.st_uid, before.st_gid)


def _prefix(target: Path) -> str:
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]  # short, whatever the length of the file's own name
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".legion-{name}-{host}-"


def _sweep(target: Path) -> None:
    """Remove drafts of this file whose process on this machine has ended without a word."""
    prefix = _prefix(target)
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            found = _DRAFT.fullmatch(entry.name)
            if found and entry.name.startswith(prefix) and not _lives(int(found["pid"])):
                os.unlink(entry.path)


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
