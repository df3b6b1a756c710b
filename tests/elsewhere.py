"""A system without what only POSIX has: no fcntl, termios or resource, no fork, no SIGHUP or SIGKILL, no Unix sockets.

    python tests/elsewhere.py [FILE...]      imports every module of the package so, and runs these files or folders of tests

Libraries that we use are imported before: what they do on other systems is theirs.
"""

import importlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "_posixshmem")
OF_OS = (
    "O_CLOEXEC", "O_NOFOLLOW", "chown", "fchmod", "fork", "forkpty", "geteuid", "getloadavg", "getpgid", "getuid", "killpg",
    "nice", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setpriority", "setsid", "sysconf", "uname",
)  # fmt: skip
SIGNALS = (
    "SIGALRM",
    "SIGCHLD",
    "SIGCONT",
    "SIGHUP",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGTSTP",
    "SIGUSR1",
    "SIGUSR2",
    "SIGWINCH",
)
USED = (
    "asyncio", "concurrent.futures", "cyclopts", "hypothesis", "libp2p", "matplotlib", "multiprocessing.connection", "numpy",
    "platformdirs.unix", "prometheus_client", "psutil", "pytest", "pytest_cov", "pytest_trio", "rich.console",
    "subprocess", "torch", "torch.distributed.checkpoint", "trio", "xdist", "zeroconf",
)  # fmt: skip


class LocksOfWindows:
    """`msvcrt.locking`, by what this system has: as there, the second file that is opened gets no lock."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        import fcntl

        self._flock, self._mode = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(self, descriptor: int, mode: int, n_bytes: int) -> None:
        self._flock(descriptor, self._mode)


def take_away() -> None:
    """Remove all of that from this process. What Windows has instead stays: locks on bytes, and processes that can be killed."""
    locks_of_windows, kill = LocksOfWindows(), int(signal.SIGKILL)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # which makes its import fail
    for name in OF_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    if hasattr(socket, "AF_UNIX"):
        del socket.AF_UNIX
    socket.socketpair = pair_over_loopback  # type: ignore[assignment]  # as Python itself does it on Windows
    subprocess.Popen.kill = lambda process: process.send_signal(kill)  # type: ignore[method-assign]
    locks = importlib.import_module("legion_p2p.files.locks")
    locks.msvcrt = locks_of_windows


def pair_over_loopback(*_: object) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _address = listener.accept()
    return here, there


def import_everything() -> list[str]:
    """The names of all modules of the package, imported; those that need a library that is not here are left out."""
    import legion_p2p

    found = []
    for module in pkgutil.walk_packages(legion_p2p.__path__, "legion_p2p."):
        if module.name.startswith("legion_p2p.integrations.") or module.name.endswith("__main__"):
            continue
        importlib.import_module(module.name)
        found.append(module.name)
    return found


def main(files: list[str]) -> int:
    for name in USED:
        importlib.import_module(name)
    import _pytest.tmpdir
    import pytest

    _pytest.tmpdir.get_user_id = lambda: None  # pytest itself asks sys.platform
    sys.path.insert(0, str(ROOT))
    take_away()
    print(f"{len(import_everything())} modules")
    return int(pytest.main(["-p", "no:cacheprovider", "-p", "no:faulthandler", *files])) if files else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: taking torch apart takes seconds
