"""No process outlives a test session, and every session starts with the usual signals: hooks that tests/conftest.py takes over.

A test that times out, or a session that is killed, may never come to its `finally`. So each session marks its environment, which
every process that a test starts inherits, and starts one process beside itself that waits for the session's end and then kills
whatever still bears the mark.
"""

import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

MARK = "TESTED_BY"  # not LEGION_...: tests of the commands remove those from the environment of what they start
PASSES = 50  # a process that is killed may have started another a moment before
INHERITED = ("SIGINT", "SIGHUP", "SIGTERM", "SIGQUIT")

_waiting: list[subprocess.Popen[bytes]] = []


def pytest_configure(config: pytest.Config) -> None:
    hear_ignored_signals()
    if not hasattr(config, "workerinput"):  # processes of pytest-xdist bear the mark of the session that started them
        mark = uuid.uuid4().hex
        os.environ[MARK] = " ".join(filter(None, [os.environ.get(MARK), mark]))
        _waiting.append(subprocess.Popen([sys.executable, __file__, mark], stdin=subprocess.PIPE, start_new_session=True))


def pytest_unconfigure(config: pytest.Config) -> None:
    for process in _waiting:
        process.communicate()
    _waiting.clear()


def hear_ignored_signals() -> None:
    """`nohup make test &` starts this process with SIGINT and SIGHUP ignored, which processes of the tests would inherit.

    A handler that does nothing ignores a signal as well, and is not inherited.
    """
    for name in INHERITED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def bearers(mark: str) -> list[psutil.Process]:
    """Processes of the session of this mark, except this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in process.environ().get(MARK, "").split():
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return found


def main(mark: str) -> None:
    """Wait until stdin ends, which is when the session has ended in whatever way; then kill its processes."""
    sys.stdin.buffer.read()
    for _ in range(PASSES):
        left = [process for process in bearers(mark) if process.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
