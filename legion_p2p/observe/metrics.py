"""Where events go: a file of JSON lines, JSON lines on a stream, or lines for people.

A sink is called from any thread and must neither block for long nor raise because a disk is full: watching must never hurt what
is watched.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from legion_p2p.errors import UsageError
from legion_p2p.observe import human
from legion_p2p.observe.event_text import describe, progress_text
from legion_p2p.observe.events import Event
from legion_p2p.observe.status import Status

PROGRESS_EVERY_S = 10.0  # at first, when somebody looks whether it works
PROGRESS_LATER_S = 60.0  # in the end: a log of a healthy hour has less than 200 lines
PROGRESS_SHARE = 0.1  # of the time since the first line after which the next one comes, between those two
BURST = 4  # lines of one kind from one progress line to the next; a crowd that joins at once must not hide everything else
ROUTINE = frozenset({
    "step", "sample", "round.closed", "shard.owned", "shard.fetched", "run.finished", "peer.left", "peer.failed",
})  # fmt: skip
"""Events that lines for people leave out: the progress line, the farewell or the error message tells the same better."""
FREQUENT = frozenset({"round.closed"})
"""Events that come many times a second."""
FLUSH_S = 0.5


def _as_plain(value: Any) -> Any:
    """A number of numpy or torch as the number that it is; anything else in words."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else str(value)


_encoder = msgspec.json.Encoder(enc_hook=_as_plain)


def encode_event(event: Event) -> bytes:
    """One line of JSON, without its end. What JSON cannot say becomes a string; NaN and infinity become null."""
    return _encoder.encode(event.as_dict())


class JsonlSink:
    """Appends each event to a file, one line each, so that a reader sees it at once and a kill loses nothing before.

    When the disk is full or gone, one line on stderr says so; events are lost until it can be written again; training goes on.
    """

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None] | None = None) -> None:
        self.path = Path(path)
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))
        self._lock = threading.Lock()
        self._reported = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as bad:
            raise UsageError(f"cannot write {self.path}: {bad.strerror or bad}") from bad
        self._torn = self._ends_in_half_a_line()

    def __call__(self, event: Event) -> None:
        line = encode_event(event) + b"\n"
        with self._lock:
            if self._fd < 0:
                return
            if self._torn:
                line = b"\n" + line
            try:
                written = os.write(self._fd, line)  # one call: lines of two processes do not mix (O_APPEND)
            except OSError as bad:
                self._failed(bad.strerror or str(bad))
                return
            if written < len(line):  # how a disk says that it is just full
                self._torn = self._torn or written > 0
                self._failed("the disk is full")
            else:
                self._torn = False

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _ends_in_half_a_line(self) -> bool:
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size
            return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        return False

    def _failed(self, why: str) -> None:
        if not self._reported:
            self._reported = True
            self._report(f"legion_p2p: cannot write {self.path}: {why}; training goes on without this file")


class JsonSink:
    """Each event as one line of JSON on a stream, for machines.

    Rounds close many times a second, and each write to a pipe wakes whoever reads it: such lines come up to FLUSH_S late, several
    at a time. Any other event is written at once, and so is what waits.
    """

    def __init__(self, stream: TextIO, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._flushed_at = -math.inf
        self._lines: list[str] = []
        """What is not written yet: a stream may write each line at once."""
        self._waits = False
        """A timer will write them."""
        self._failure: Exception | None = None
        """Of that flush: the next call raises it."""

    def __call__(self, event: Event) -> None:
        line = encode_event(event).decode() + "\n"
        with self._lock:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            self._lines.append(line)
            if event.name not in FREQUENT or self._monotonic() - self._flushed_at >= FLUSH_S:
                self._flush()
            elif not self._waits:
                self._waits = True
                timer = threading.Timer(FLUSH_S, self._flush_late)
                timer.daemon = True
                timer.start()

    def _flush(self) -> None:
        self._flushed_at = self._monotonic()
        lines, self._lines = self._lines, []
        self._stream.write("".join(lines))
        self._stream.flush()

    def _flush_late(self) -> None:
        with self._lock:
            self._waits = False
            try:
                self._flush()
            except (OSError, ValueError) as bad:  # nobody reads, the disk is full, or the stream is closed
                self._failure = bad


class PlainSink:
    """Each event as a line that a person reads: the time, what happened in words, and its fields with units.

    What is `ROUTINE` never shows, errors always. `progress()` writes a line about the whole peer every `PROGRESS_EVERY_S`, and
    after some minutes every `PROGRESS_LATER_S`, however often it is called. Of all else, `BURST` lines of a kind pass in such a
    time; the next line that passes says how many did not.
    """

    def __init__(
        self, stream: TextIO, *, burst: int = BURST, quiet: bool = False,
        monotonic: Callable[[], float] = time.monotonic, wall_time: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._burst = burst
        self._quiet = quiet
        self._monotonic = monotonic
        self._wall_time = wall_time
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[float, int, int]] = {}  # name: when its window began, lines shown, lines held back
        self._first_progress: float | None = None
        self._last_progress = -math.inf
        self._last_step = -1
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.name in ROUTINE:
                return
            if event.is_error:
                self._write(describe(event))
            elif not self._quiet:
                passes, held_back = self._admit(event.name)
                if passes:
                    self._write(describe(event) + (f" (and {held_back} more like it)" if held_back else ""))

    def progress(self, status: Status) -> None:
        """Say how far the peer is, unless that was said a moment ago or nothing has moved."""
        now = self._monotonic()
        with self._lock:
            early = now - self._last_progress < self._every_s(now)
            if self._quiet or early or status.step == self._last_step:
                return
            if self._first_progress is None:
                self._first_progress = now
            self._last_progress = now
            self._last_step = status.step
            self._write(f"{human.clock_text(self._wall_time())} {progress_text(status)}")

    def _admit(self, name: str) -> tuple[bool, int]:
        now = self._monotonic()
        began, shown, held_back = self._windows.get(name, (now, 0, 0))
        if now - began >= self._every_s(now):
            self._windows[name] = (now, 1, 0)
            return True, held_back
        passes = shown < self._burst
        self._windows[name] = (began, shown + 1, held_back) if passes else (began, shown, held_back + 1)
        return passes, 0

    def _every_s(self, now: float) -> float:
        """Seconds from one progress line to the next, by now."""
        since_s = 0.0 if self._first_progress is None else now - self._first_progress
        return min(max(PROGRESS_SHARE * since_s, PROGRESS_EVERY_S), PROGRESS_LATER_S)

    def _write(self, line: str) -> None:
        self._stream.write(line.encode(self._encoding, "replace").decode(self._encoding) + "\n")
        self._stream.flush()
