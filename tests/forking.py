"""Starts Python processes as forks of one that has imported torch and libp2p already, which takes three to four seconds of CPU.

`ForkServer.popen` and `ForkServer.run` take what subprocess.Popen and subprocess.run take, and fork where Python is started.
All processes of a test session, those of pytest-xdist among them, share one server (tests/fork_server.py).
"""

import errno
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MAX_REQUEST = 1 << 17  # arguments and environment of a process; a message on a socket has to fit its buffer
PATIENCE_S = 60.0


class ForkServer:
    """The server as its clients see it. It is started with the first process that anybody asks it for."""

    def __init__(self, control: socket.socket | None = None) -> None:
        """`control`: where a server listens; otherwise it is that of the session."""
        self._control = control
        self._one_at_a_time = threading.Lock()

    def popen(self, args: list[str], *, network: str = "", starts_others: bool = False, **how: Any) -> "subprocess.Popen[Any]":
        """As subprocess.Popen. It leads a session of its own.

        `network`: the file of a network namespace, in which it then is. `starts_others`: Python processes that it starts by
        subprocess are forks as well.
        """
        return _Popen(args, server=self, network=network, starts_others=starts_others, **how)

    def run(self, args: list[str], *, timeout: float, check: bool = False, **how: Any) -> "subprocess.CompletedProcess[Any]":
        """As subprocess.run."""
        if how.pop("capture_output", False):
            how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(args, stdin=subprocess.DEVNULL, **how) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(args, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """The process id of a new process with these as its stdin, stdout, stderr and the file for its status."""
        message = json.dumps(request).encode()
        assert len(message) < MAX_REQUEST
        with self._one_at_a_time:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    control = self._connected()
                    socket.send_fds(control, [message], streams)
                    if told := control.recv(16):
                        return int(told)
                except OSError as bad:
                    if bad.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED):
                        raise
                assert time.monotonic() < deadline, "the fork server does not answer"
                self.close()  # it was ending when it was asked

    def close(self) -> None:
        """The server ends when nobody uses it."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def take_over_subprocess(self) -> None:
        """From now on what this process starts by subprocess is a fork, where it is Python."""
        subprocess.Popen = functools.partial(_Popen, server=self, starts_others=True)  # type: ignore[assignment, misc]

    def _connected(self) -> socket.socket:
        if self._control is None:
            self._control = connected()
        return self._control


def connected() -> socket.socket:
    """A connection to the server of this test session, which is started if need be."""
    from tests.leftovers import MARK

    address = "\0legion tests " + os.environ[MARK].split()[-1]
    while True:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.connect(address)
            return control
        except ConnectionRefusedError:
            control.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(address)
            except OSError:  # another process starts it
                time.sleep(0.01)
                continue
            listener.listen()
            subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "fork_server.py"), str(listener.fileno())],
                cwd=ROOT, pass_fds=[listener.fileno()], start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip


class _Popen(subprocess.Popen[Any]):
    """A process that the server forks, or that is started as usual where no fork can do what it does."""

    def __init__(
        self, args: Any, *more: Any, server: ForkServer, network: str = "", starts_others: bool = False, **how: Any
    ) -> None:
        self._server = server
        self._request = {"network": network, "starts_others": starts_others}
        self._status = -1  # the server writes the wait status there
        super().__init__(args, *more, **how)

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *more,
    ):  # fmt: skip
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        if not (can_fork() and is_python(args)) or shell or executable or preexec_fn or pass_fds:
            assert not self._request["network"]
            super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *pipes, *more
            )
            return
        self._status, its_status = os.pipe()
        streams = [own if theirs == -1 else theirs for own, theirs in enumerate((p2cread, c2pwrite, errwrite))]
        whole_env = dict(os.environ if env is None else env)
        request = {
            **self._request, "args": [os.fspath(word) for word in args[1:]], "cwd": os.path.abspath(cwd or "."), "env": whole_env
        }  # fmt: skip
        try:
            self.pid = self._server.fork(request, [*streams, its_status])
        finally:
            os.close(its_status)
            self._close_pipe_fds(*pipes)
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status == -1:
            return super()._try_wait(wait_flags)
        if not select.select([self._status], [], [], 0 if wait_flags & os.WNOHANG else None)[0]:
            return 0, 0
        told = os.read(self._status, 16)
        os.close(self._status)
        return self.pid, int(told) if told else signal.SIGKILL  # the server itself was killed

    def _internal_poll(self, *more: Any, **how: Any) -> int | None:
        if self._status == -1:
            return super()._internal_poll(*more, **how)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = (0, 0) if self.returncode is not None else self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def can_fork() -> bool:
    """Where not, all processes are started as usual."""
    return sys.platform == "linux" and hasattr(os, "fork") and hasattr(socket, "AF_UNIX")


def is_python(args: Any) -> bool:
    """Whether a fork can do what this command does."""
    if isinstance(args, str | bytes) or len(args) < 2 or args[0] != sys.executable:
        return False
    words = [word for word in args[1:] if word != "-u"]
    return all(isinstance(word, str) for word in words) and (words[0] in ("-m", "-c") or not words[0].startswith("-"))
