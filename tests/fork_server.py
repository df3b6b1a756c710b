"""The process that tests/forking.py asks for forks: `fork_server.py FD`, with the file of a socket that listens.

It has imported torch and libp2p and done nothing else. Each fork runs a script, a module or some code as `python SCRIPT`,
`python -m MODULE` and `python -c CODE` would, in a session of its own, with streams, environment and folder of its own. It ends
with the code of an interpreter, after its threads and its handlers of atexit. Only the interpreter is not taken apart, which
takes two more seconds of CPU. Use it for tests of what peers do to each other. How a command starts, and what becomes of it at
the end of its interpreter, is tested with `python` itself.

The server ends when nobody is connected to it any more.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import types
from typing import Any

CLONE_NEWNET = 0x40000000
PR_SET_NAME = 15
NAME = "fork-server"  # of this process, as psutil tells it

PRELOADED = (  # what a peer that trains has imported after its first step, and what the commands do before
    "torch._dynamo",  # by every optimizer of torch, when it is made
    "torch.distributed.fsdp",
    "legion_p2p.cli.bootstrap",
    "legion_p2p.cli.checkpoint",
    "legion_p2p.cli.ctl",
    "legion_p2p.cli.demo_swarm",
    "legion_p2p.cli.peer",
    "legion_p2p.net.bitswap",
    "legion_p2p.net.discovery",
    "legion_p2p.net.gossip",
    "legion_p2p.net.host",
    "legion_p2p.peer",
    "legion_p2p.train.averaging",
    "legion_p2p.train.optimizer",
    "legion_p2p.train.trainer",
    "tests.forking",
)

Request = dict[str, Any]


def serve(clients: set[socket.socket], listener: socket.socket | None = None) -> Request | None:
    """Fork for each request. Returns in each child what it should run, and in the server None at its end."""
    from tests.forking import MAX_REQUEST

    statuses: dict[int, int] = {}
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    waits_for_first = listener is not None
    while clients or waits_for_first:
        ready, _, _ = select.select([*clients, woken, *([listener] if listener else [])], [], [])
        if woken in ready:
            woken.recv(4096)
            reap(statuses)
        if listener in ready and listener is not None:
            client, _ = listener.accept()
            if is_ours(client):
                clients.add(client)
                waits_for_first = False
        for client in clients.intersection(ready):
            try:
                message, streams, _, _ = socket.recv_fds(client, MAX_REQUEST, 4)
            except ConnectionResetError:
                message, streams = b"", []
            if not message:
                clients.remove(client)
                client.close()
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()  # before anybody knows of it
                with contextlib.suppress(OSError):
                    client.send(str(os.getpid()).encode())
                for end in (*clients, woken, wakes, *([listener] if listener else [])):
                    end.close()
                for number, stream in enumerate(streams[:3]):
                    os.dup2(stream, number)
                for fd in (*streams, *statuses.values()):
                    os.close(fd)
                asked: Request = json.loads(message)
                return asked
            for stream in streams[:3]:
                os.close(stream)
            statuses[pid] = streams[3]
    return None


def is_ours(client: socket.socket) -> bool:
    """Whether the same user is at the other end: it may run anything here."""
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


def reap(statuses: dict[int, int]) -> None:
    """Tell of each child that has ended how it did."""
    for pid, status in tuple(statuses.items()):
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                os.write(status, str(how).encode())
            os.close(statuses.pop(pid))


def become(request: Request) -> None:
    """Be that Python process from here on."""
    name_process("python")
    if request["network"]:
        enter_network(request["network"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    if request["starts_others"]:
        inner = start_inner()
        if inner is not None:
            become(inner)
            return
    words = request["args"]
    is_unbuffered = words[0] == "-u" or bool(os.environ.get("PYTHONUNBUFFERED"))
    open_streams(is_unbuffered)
    run([word for n, word in enumerate(words) if n or word != "-u"])


def start_inner() -> Request | None:
    """A server for what this process will start itself. It is a child of this process, and ends with it.

    Returns None here, and in each fork what that should run.
    """
    from tests.forking import ForkServer

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        ForkServer(ours).take_over_subprocess()
        return None
    ours.close()
    os.setsid()  # Ctrl+C is not for it
    name_process(NAME)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)
    request = serve({theirs})
    if request is None:
        os._exit(0)
    return request


def open_streams(is_unbuffered: bool) -> None:
    for name, fd in (("stdout", 1), ("stderr", 2)):
        buffer: Any = os.fdopen(fd, "wb", 0 if is_unbuffered else -1, closefd=False)
        errors = "backslashreplace" if name == "stderr" else None
        stream = io.TextIOWrapper(buffer, errors=errors, line_buffering=name == "stderr", write_through=is_unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)  # type: ignore[misc, assignment]


def run(words: list[str]) -> None:
    """What the interpreter does with its arguments."""
    more_paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    kind = words[0]
    sys.argv = words[1:] if kind == "-m" else words
    first = os.getcwd() if kind == "-m" else "" if kind == "-c" else os.path.dirname(os.path.abspath(kind))
    sys.path[:1] = [first, *more_paths]
    if kind == "-m":
        sys.modules.pop(words[1], None)  # as if it had not been imported
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(kind, run_name="__main__")


def enter_network(path: str) -> None:
    """As `nsenter --net=PATH` does. All threads that this process starts will be there."""
    with open(path) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {path}")


def name_process(name: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


class Ending:
    """Ends a child with the code of its interpreter, in the last handler of atexit."""

    def __init__(self) -> None:
        self._code = 0
        self._by_signal = False
        atexit.register(self._end)

    def run(self, request: Request) -> None:
        try:
            become(request)
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
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    name_process(NAME)
    request = serve(set(), socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        os._exit(0)  # at once: taking torch apart takes seconds
    ending.run(request)


if __name__ == "__main__":
    main()
