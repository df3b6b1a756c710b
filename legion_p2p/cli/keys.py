"""Single keys on the terminal while a peer trains: p pauses or resumes, f finishes, q leaves, - and + set the upload limit.

Only a process in the foreground of its terminal reads them: one in the background would be stopped for trying. Where there are
neither termios nor msvcrt there are no keys.
"""

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]
try:
    import msvcrt  # of Windows
except ImportError:
    msvcrt = None  # type: ignore[assignment]

LOOK_EVERY_S = 0.2
GONE: tuple[type[Exception], ...] = (OSError, ValueError, *([termios.error] if termios is not None else []))
"""What reading a terminal raises that was closed."""
HINT = "keys: p pause or resume, f finish, q leave, - and + upload limit"


class Keys:
    """Calls what stands for a key, on a thread of its own, while the context is open."""

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = actions
        self._ended = threading.Event()
        self._before: list[Any] | None = None
        self._thread: threading.Thread | None = None

    @property
    def can_read(self) -> bool:
        """There is a terminal to read from."""
        try:
            return sys.stdin is not None and sys.stdin.isatty() and (termios is not None or msvcrt is not None)
        except ValueError:  # closed
            return False

    def __enter__(self) -> Self:
        if self.can_read:
            self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.restore_terminal()

    def restore_terminal(self) -> None:
        """The terminal shows what is typed again."""
        if self._before is not None and _in_foreground():
            with contextlib.suppress(*GONE):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._before)

    def pressed(self, key: str) -> None:
        action = self._actions.get(key.lower())
        if action is not None:
            action()

    def _read(self) -> None:
        read = self._read_posix if termios is not None else self._read_windows
        with contextlib.suppress(*GONE):
            while not self._ended.is_set():
                read()

    def _read_posix(self) -> None:
        if not _in_foreground():
            self._ended.wait(LOOK_EVERY_S)
            return
        fd = sys.stdin.fileno()
        modes = termios.tcgetattr(fd)
        if modes[3] & termios.ICANON:  # at the start, and again where a shell has set it back after Ctrl+Z
            self._before = list(modes)
            modes[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(fd, termios.TCSANOW, modes)
        ready, _, _ = select.select([fd], [], [], LOOK_EVERY_S)
        if ready and _in_foreground():
            typed = os.read(fd, 1)
            if not typed:
                self._ended.set()
            self.pressed(typed.decode("ascii", "replace"))

    def _read_windows(self) -> None:
        if msvcrt.kbhit():  # type: ignore[attr-defined]
            self.pressed(msvcrt.getwch())  # type: ignore[attr-defined]
        else:
            self._ended.wait(LOOK_EVERY_S)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # AttributeError: Windows, where all are
        return os.name == "nt"
