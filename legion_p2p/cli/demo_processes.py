"""The processes of the demo as their parent sees them: started, told what to do, listened to, and always ended."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import legion_p2p
from legion_p2p.cli.environment import ENV_PREFIX

LEAVE_S = 1.5  # for an orderly end after SIGTERM; then SIGKILL. Ctrl+C must end everything within 3 s
LOG_LINES = 12
Event = dict[str, Any]

ENDED = "process.ended"
"""The event that stands for the end of a process; its `code` is the exit code."""
LINE = "process.line"
"""A line on stdout that is no JSON: its `text`."""


class Child:
    """One process. Its stdout is read as JSON lines, which go to `inbox` beside the child; stderr goes to `log`."""

    def __init__(self, label: str, log: Path, inbox: "queue.SimpleQueue[tuple[Child, Event]]", *, preload: bool) -> None:
        self.label = label
        self.log = log
        self._inbox = inbox
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "legion_p2p.cli.demo_child", label, *(["--preload"] if preload else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=_environment(), start_new_session=True,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"reader of {label}", daemon=True)
        self._reader.start()

    def run(self, module: str, args: Iterable[str]) -> None:
        """Run a command in it. Where the process has ended, its `ENDED` event tells; nothing is raised."""
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.popen.stdin.write(json.dumps({"module": module, "args": list(args)}).encode() + b"\n")
            self.popen.stdin.flush()

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """To the process and whatever it has started; on Windows, which has no groups of processes, to the process."""
        if self.alive:
            send = getattr(os, "killpg", os.kill)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(self.popen.pid, number)

    def last_words(self) -> list[str]:
        """The end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.strip()][-LOG_LINES:]

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                event = {"event": LINE, "text": line.decode(errors="replace").strip()}
            self._inbox.put((self, event))
        self._inbox.put((self, {"event": ENDED, "code": self.popen.wait()}))


class ProcessGroup:
    """All children of one demo, and what they say. Leaving the context ends every one of them."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[Child, Event]] = queue.SimpleQueue()
        self._children: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def start(self, label: str, log: Path, *, preload: bool = True) -> Child:
        with self._lock:
            if self._closed:
                raise KeyboardInterrupt
            child = Child(label, log, self.inbox, preload=preload)
            self._children.append(child)
            return child

    def ask_to_leave(self) -> None:
        """SIGTERM to all, and none is started any more. From any thread."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all that still live. From any thread."""
        for child in self._children:
            child.signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self.ask_to_leave()
        deadline = time.monotonic() + LEAVE_S
        while any(child.alive for child in self._children) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        for child in self._children:
            child.popen.wait()
            for pipe in (child.popen.stdin, child.popen.stdout):
                with contextlib.suppress(OSError, ValueError):
                    if pipe is child.popen.stdout:
                        child._reader.join(1)
                    if pipe is not None:
                        pipe.close()


def poll_status(addresses: Callable[[], dict[str, str]], tell: Callable[[str, Any], None], every_s: float) -> None:
    """Ask every status endpoint of `addresses` (label: HOST:PORT) again and again, in a daemon thread."""

    def poll() -> None:
        import trio

        trio.run(_poll, addresses, tell, every_s)

    threading.Thread(target=poll, name="status", daemon=True).start()


async def _poll(addresses: Callable[[], dict[str, str]], tell: Callable[[str, Any], None], every_s: float) -> None:
    import trio

    from legion_p2p.errors import NetworkError
    from legion_p2p.net.status_http import fetch_status

    async def ask(label: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        with contextlib.suppress(NetworkError), trio.move_on_after(2.0):  # it has ended, or is busy: the next time will tell
            tell(label, await fetch_status(host, int(port)))

    while True:
        async with trio.open_nursery() as nursery:
            for label, address in addresses().items():
                nursery.start_soon(ask, label, address)
        await trio.sleep(every_s)


def _environment() -> dict[str, str]:
    """What children see: this very package, one thread for torch, and no variable that would change a peer's options."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    root = str(Path(legion_p2p.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
