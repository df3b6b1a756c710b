"""Processes for the end-to-end tests, none of which outlives its test."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from legion_p2p.store.control_key import NAME as CONTROL_KEY
from tests.forking import ForkServer
from tests.waiting import PATIENCE_S
from tests.waiting import eventually as eventually

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
UNHURRIED = ("--max-cpu", "5%")  # of a peer that trains until the test is over: the others need the processors


class Ended(Exception):
    """The process has ended, or said nothing in time."""


def is_end(message: dict[str, Any]) -> bool:
    """A worker's command has ended, one way or the other."""
    return "event" not in message and ("done" in message or "failed" in message)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs. It may end at any moment, also between two questions about it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Process:
    """A Python process that says JSON lines; what else it writes is kept for the message when something fails."""

    def __init__(
        self, *args: str, env: dict[str, str] | None = None, forks: ForkServer | None = None, starts_others: bool = False
    ) -> None:
        """`forks`: starts it, which is cheaper than `python` is, and with `starts_others` also what it starts."""
        self.tmp = Path(tempfile.mkdtemp(prefix="legion-e2e-"))
        self.said: list[dict[str, Any]] = []
        self.has_started = False
        self._coming: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._stderr = (self.tmp.with_suffix(".stderr")).open("w+")
        # Its temporary files go to a folder of its own, so that those left behind are seen.
        whole_env = {
            **os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.tmp), "HOME": str(self.tmp), "OMP_NUM_THREADS": "1",
            **(env or {}),
        }  # fmt: skip
        start = subprocess.Popen if forks is None else partial(forks.popen, starts_others=starts_others)
        self.popen: subprocess.Popen[str] = start(
            [sys.executable, *args], cwd=ROOT, env=whole_env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._stderr, start_new_session=True,
        )  # fmt: skip
        self.pid = self.popen.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = {"event": "text", "text": line.rstrip()}
            if not isinstance(message, dict):
                message = {"event": "text", "text": line.rstrip()}
            self.said.append(message)
            self._coming.put(message)
        self._coming.put(None)

    def tell(self, **command: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(command) + "\n")
        self.popen.stdin.flush()

    def wait_for(self, wanted: str | Callable[[dict[str, Any]], bool], within_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next message that fits: an event's name, or anything that is true for it. What comes before is skipped."""
        if callable(wanted):
            fits, what = wanted, "what was waited for"
        else:
            fits, what = (lambda m: m.get("event") == wanted), wanted
        deadline = time.monotonic() + within_s
        while True:
            try:
                message = self._coming.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Ended(f"process {self.pid}: no {what} within {within_s} s\n{self.story()}") from None
            if message is None:
                self._coming.put(None)
                raise Ended(f"process {self.pid} ended with {self.popen.poll()} before {what}\n{self.story()}")
            if fits(message):
                return message
            if is_end(message):
                raise Ended(f"process {self.pid} failed before {what}\n{self.story()}")

    def result(self, within_s: float = PATIENCE_S) -> Any:
        """What its command returned."""
        return self.wait_for(lambda m: is_end(m) and "done" in m, within_s)["done"]

    def failure(self, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """How its command failed."""
        return self.wait_for(is_end, within_s)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Those of this name that it has said so far."""
        return [m for m in list(self.said) if m.get("event") == name]

    def wait(self, within_s: float = PATIENCE_S) -> int:
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise Ended(f"process {self.pid} did not end within {within_s} s\n{self.story()}") from None

    def story(self) -> str:
        self._stderr.flush()
        told = "\n".join(json.dumps(m)[:400] for m in self.said[-60:])
        return f"--- it said\n{told}\n--- stderr\n{Path(self._stderr.name).read_text()[-4000:]}"

    def stderr(self) -> str:
        return Path(self._stderr.name).read_text()

    def kill(self) -> None:
        """SIGKILL to it and all of its descendants."""
        family = [*self.descendants(), self.pid]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.popen.wait()

    def descendants(self) -> list[int]:
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def session(self) -> set[int]:
        """Ids of the processes of its session that run, itself among them."""
        found = set()
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and is_alive(process):
                    found.add(process.pid)
            except (ProcessLookupError, psutil.Error):
                continue
        return found

    def left_files(self) -> list[str]:
        """But for the control key, which all peers of a user share: the first one makes it, and it stays."""
        left = (p for p in self.tmp.rglob("*") if p.is_file() and p.name != CONTROL_KEY)
        return sorted(str(p.relative_to(self.tmp)) for p in left)

    def close(self) -> None:
        self.kill()
        self._reader.join(5)
        for stream in (self.popen.stdin, self.popen.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                continue
        self._stderr.close()
        Path(self._stderr.name).unlink(missing_ok=True)
        for path in sorted(self.tmp.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.tmp.rmdir()


class Workers:
    """Worker processes, kept for the next test where they come back clean."""

    def __init__(self, forks: ForkServer) -> None:
        self._forks = forks
        self._idle: list[Process] = []
        self._out: list[Process] = []

    def take(self, n: int) -> list[Process]:
        while len(self._idle) < n:
            self._idle.append(Process(str(HERE / "workers.py"), forks=self._forks))
        taken, self._idle = self._idle[:n], self._idle[n:]
        self._out += taken
        for worker in taken:
            if not worker.has_started:
                worker.wait_for("started")
                worker.has_started = True
            worker.said.clear()
        return taken

    def give_back(self) -> Iterator[tuple[Process, dict[str, Any]]]:
        """Take all workers back; of those that are idle, what they have left behind."""
        out, self._out = self._out, []
        for worker in out:
            if worker.popen.poll() is None and worker.said and is_end(worker.said[-1]):
                try:
                    worker.tell(do="leftovers")
                    left = worker.result()
                except (Ended, OSError):
                    worker.close()
                    raise
                self._idle.append(worker)
                yield worker, left
            else:
                worker.close()

    def close(self) -> None:
        for worker in (*self._idle, *self._out):
            worker.close()


def listening_ports(pids: set[int]) -> set[int]:
    """TCP ports that any of these processes listens on."""
    return {
        c.laddr.port for c in psutil.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids and c.laddr
    }
