"""stdout and stderr, as a command may find them: closed, full, without a reader, or in an encoding that lacks characters."""

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

_LENIENT = ("backslashreplace", "replace", "ignore", "xmlcharrefreplace", "namereplace")


def prepare_streams() -> None:
    """Let anything be written to stdout and stderr, and keep the numbers 0 to 2 from being given to a socket or a file.

    A stream that was closed (`>&-`) fails when it is written to, as a full disk does; a character that the encoding lacks is
    written as an escape. What stdout could not write is dropped: it fails once, and not again at each later flush.
    """
    _occupy_standard_numbers()
    out = sys.stdout
    if out is None:
        sys.stdout = _closed_stream()
    elif type(out) is io.TextIOWrapper and type(out.buffer) is io.BufferedWriter:  # neither a test's, nor one without a buffer
        sys.stdout = _FailingOnce(out.buffer, out.encoding, out.errors, line_buffering=out.line_buffering)
    if sys.stderr is None:
        sys.stderr = _closed_stream()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in _LENIENT:
            stream.reconfigure(errors="backslashreplace")


def flush(stream: TextIO) -> None:
    """Write out what is buffered. Raises: OSError, after which the stream leads nowhere and its end cannot fail again."""
    try:
        stream.flush()
    except ValueError:  # it was closed by the program
        return
    except OSError:
        _lead_nowhere(stream)
        raise


def _lead_nowhere(stream: TextIO) -> None:
    """Drop what the stream has buffered, and everything that is written to it from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        # of the base: `_FailingOnce.flush` would come back to here
        io.TextIOWrapper.flush(stream) if isinstance(stream, io.TextIOWrapper) else stream.flush()


def _occupy_standard_numbers() -> None:
    while True:
        number = os.open(os.devnull, os.O_RDONLY)
        if number > 2:
            os.close(number)
            return
        os.set_inheritable(number, True)


class _FailingOnce(io.TextIOWrapper):
    """A buffered stream that leads nowhere after its first failure. A plain one keeps what it could not write and fails again."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _lead_nowhere(self)
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _lead_nowhere(self)
            raise


class _Refusing(io.RawIOBase):
    """A stream that was closed before the command began: it fails once, which the command tells, and then takes everything."""

    def __init__(self) -> None:
        self._has_refused = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self._has_refused:
            self._has_refused = True
            raise OSError(errno.EBADF, "it was closed when this command began")
        return len(data)


def _closed_stream() -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(_Refusing()), encoding="utf-8", errors="backslashreplace", line_buffering=True)
