"""Starts Python processes that have imported torch and libp2p already, which takes three to four seconds of CPU.

Each is a fork of one process, the server, that has imported them and done nothing else. It runs a script or a module as
`python SCRIPT` and `python -m MODULE` would, in a session of its own, with streams, environment and folder of its own. It ends
with the code of an interpreter, after its threads and its handlers of atexit. Only the interpreter is not taken apart, which
takes two more seconds of CPU. Use it for tests of what peers do to each other. How a command starts, and what becomes of it at
the end of its interpreter, is tested with `python` itself.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MAX_REQUEST = 1 << 20  # arguments and environment of a process
CLONE_NEWNET = 0x40000000


class Forked:
    """A process that the server started: what the tests use of subprocess.Popen."""

    def __init__(self, pid: int, stdin: int, stdout: int | None, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = None if stdout is None else os.fdopen(stdout)
        self._status = status  # the server writes the return code there

    def poll(self) -> int | None:
        return self._ended_within(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            told = os.read(self._status, 16)
            os.close(self._status)
            self.returncode = int(told) if told else -signal.SIGKILL  # the server itself was killed
        return self.returncode


class ForkServer:
    """Started with the first process that it is asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(
        self, args: list[str], env: dict[str, str], cwd: Path, stderr: int, stdout: int | None = None, network: str = ""
    ) -> Forked:
        """A process for `python ARGS`; it and only it holds the other ends of its streams.

        `stdout`: what it writes goes there; otherwise it is read from the process. `network`: the file of a network namespace,
        in which the process then is.
        """
        control = self._started()
        (its_in, stdin), (status, its_status) = os.pipe(), os.pipe()
        told, its_out = os.pipe() if stdout is None else (None, os.dup(stdout))
        request = json.dumps({"args": args, "env": env, "cwd": str(cwd), "network": network}).encode()
        assert len(request) < MAX_REQUEST
        socket.send_fds(control, [request], [its_in, its_out, stderr, its_status])
        pid = int(control.recv(16))
        for end in (its_in, its_out, its_status):
            os.close(end)
        return Forked(pid, stdin, told, status)

    def close(self) -> None:
        if self._control is not None and self._process is not None:
            self._control.close()  # at which the server ends
            self._process.wait()

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
        return self._control


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns in each child what it should run, and in the server None at its end."""
    statuses: dict[int, int] = {}
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            reap(statuses)
        if control not in ready:
            continue
        request, streams, _, _ = socket.recv_fds(control, MAX_REQUEST, 4)
        if not request:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (control, woken, wakes):
                end.close()
            *mine, status = streams
            for number, stream in enumerate(mine):
                os.dup2(stream, number)
            for fd in (*streams, *statuses.values()):
                os.close(fd)
            asked: dict[str, Any] = json.loads(request)
            return asked
        *theirs, status = streams
        for stream in theirs:
            os.close(stream)
        statuses[pid] = status
        control.send(str(pid).encode())


def reap(statuses: dict[int, int]) -> None:
    """Tell of each child that has ended with which code."""
    for pid, status in tuple(statuses.items()):
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            os.write(status, str(os.waitstatus_to_exitcode(how)).encode())
            os.close(statuses.pop(pid))


def become(args: list[str], env: dict[str, str], cwd: str, network: str) -> None:
    """Be `python ARGS` from here on."""
    os.setsid()
    if network:
        enter_network(network)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    if args[0] == "-m":
        sys.path[0] = cwd
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(args[0])
        sys.argv = args
        runpy.run_path(args[0], run_name="__main__")


def enter_network(path: str) -> None:
    """As `nsenter --net=PATH` does. All threads that this process starts will be there."""
    with open(path) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {path}")


def preload() -> None:
    """Import what a peer that trains has imported after its first step."""
    import torch._dynamo  # noqa: F401 - by every optimizer of torch, when it is made

    import legion_p2p.cli.checkpoint
    import legion_p2p.cli.ctl
    import legion_p2p.cli.peer
    import legion_p2p.net.bitswap
    import legion_p2p.net.discovery
    import legion_p2p.net.gossip
    import legion_p2p.net.host
    import legion_p2p.peer
    import legion_p2p.train.averaging
    import legion_p2p.train.optimizer
    import legion_p2p.train.trainer  # noqa: F401


class Ending:
    """Ends a child with the code of its interpreter, in the last handler of atexit."""

    def __init__(self) -> None:
        self._code = 0
        self._by_signal = False
        atexit.register(self._end)

    def run(self, **request: Any) -> None:
        try:
            become(**request)
        except SystemExit as end:
            self._code = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        except KeyboardInterrupt:
            self._by_signal = True
            raise
        except BaseException:  # whatever it is, the interpreter prints it, and ends with 1
            self._code = 1
            raise

    def _end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if self._by_signal:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(self._code)


def main() -> None:
    ending = Ending()  # before anything else is imported: what is registered first comes last
    gc.disable()  # which would go through all that is imported, again and again
    preload()
    gc.freeze()
    gc.enable()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        os._exit(0)  # at once: taking torch apart takes seconds
    ending.run(**request)


if __name__ == "__main__":
    main()
