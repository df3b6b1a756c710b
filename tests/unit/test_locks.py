"""Locks on files: one holder at a time, on POSIX for real and on Windows by its own way of locking, which a stand-in has here."""

from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from legion_p2p.files import locks
from legion_p2p.files.locks import BYTE, try_lock


class Windows:
    """What msvcrt does, of one machine: a byte of a file is locked for one open file at a time."""

    LK_NBLCK = 2

    def __init__(self, opened: dict[int, IO[bytes]]) -> None:
        self.held: set[int] = set()
        self.opened = opened

    def locking(self, descriptor: int, mode: int, n_bytes: int) -> None:
        at = self.opened[descriptor].tell()
        assert (mode, n_bytes) == (self.LK_NBLCK, 1)
        if at in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add(at)


@pytest.mark.skipif(locks.fcntl is None, reason="no fcntl here")
def test_a_second_open_file_gets_no_lock_until_the_first_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "wb") as first, open(path, "rb") as second:
        assert try_lock(first) and not try_lock(second)
        first.close()
        assert try_lock(second)


def test_on_windows_a_byte_beyond_the_end_is_locked_so_that_others_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"seed")
    with open(path, "rb") as first, open(path, "rb") as second:
        windows = Windows({first.fileno(): first, second.fileno(): second})
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", windows)

        assert try_lock(first) and not try_lock(second)
        assert windows.held == {BYTE} and first.read() == second.read() == b"seed"


def test_a_file_system_or_a_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(37, "No locks available")

    with open(tmp_path / "lock", "wb") as file:
        monkeypatch.setattr(locks, "fcntl", SimpleNamespace(flock=refuses, LOCK_EX=2, LOCK_NB=4))
        assert try_lock(file)
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", None)
        assert try_lock(file)
