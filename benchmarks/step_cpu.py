"""The CPU that one local step of the demo takes in a swarm, beside the same step in plain torch.

    python benchmarks/step_cpu.py --peers 4 --seconds 60

Peers are processes of `legion-peer` with the demo's model, settings and status polls; plain torch is the demo's lone peer. All
train at the same time, each on one thread of torch, so they share the machine in the same way. A figure is the CPU time of the
whole process, user and system, with all its threads, over the steps that it made meanwhile. The ratio is what the swarm costs.
"""

import argparse
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from legion_p2p.cli.demo_plan import LOOPBACK, RUN_NAME, DemoPlan
from legion_p2p.observe.event_text import JOIN_WITH

ENDED = "ended"
WARM_UP_STEPS = 40  # torch plans its kernels, connections are made, and the first rounds are found into
STATUS_EVERY_S = 0.7  # as the demo's view asks
START_S = 240.0  # until all are in step, on a busy machine
STEPS = 1_000_000  # more than anybody makes: the parent ends them


Inbox = queue.SimpleQueue[tuple["Process", dict[str, Any]]]


class Process:
    """One process, and its CPU time at each step that it told of."""

    def __init__(self, label: str, module: str, args: list[str], inbox: Inbox) -> None:
        self.label = label
        self.marks: list[tuple[int, float]] = []
        self.status = ""
        self.popen = subprocess.Popen([sys.executable, "-m", module, *args], stdout=subprocess.PIPE)
        self._of_system = psutil.Process(self.popen.pid)
        self._inbox = inbox
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with suppress(ValueError, psutil.Error):
                event = json.loads(line) if line.startswith(b"{") else {"event": "line", "text": line.decode().strip()}
                if event["event"] == "step":
                    times = self._of_system.cpu_times()
                    self.marks.append((event["step"], times.user + times.system))
                self._inbox.put((self, event))
        self._inbox.put((self, {"event": ENDED}))

    @property
    def is_warm(self) -> bool:
        return bool(self.marks) and self.marks[-1][0] >= WARM_UP_STEPS

    def ms_per_step(self) -> float:
        """Since it was warm."""
        warm = [mark for mark in self.marks if mark[0] >= WARM_UP_STEPS]
        if len(warm) < 2:
            raise SystemExit(f"{self.label} made only {self.marks[-1][0] if self.marks else 0} steps: give it more --seconds")
        (first, began), (last, ended) = warm[0], warm[-1]
        return 1000 * (ended - began) / (last - first)


def poll(processes: list[Process]) -> None:
    """What the demo's view costs the peers."""
    while True:
        for process in processes:
            if process.status:
                with suppress(OSError):
                    urllib.request.urlopen(f"http://{process.status}/status", timeout=2).read()
        time.sleep(STATUS_EVERY_S)


def listen(inbox: Inbox, enough: Callable[[], bool], for_s: float) -> dict[str, dict[str, Any]]:
    """Take in what the processes say until it is enough, or the time is over; the last event of each name."""
    said: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline and not enough():
        with suppress(queue.Empty):
            process, event = inbox.get(timeout=0.2)
            if event["event"] == ENDED:
                raise SystemExit(f"{process.label} has ended early")
            said[event["event"]] = event
            if event["event"] == "status.served":
                process.status = str(event["address"])
    return said


def address_of_first(inbox: Inbox) -> str:
    said: dict[str, dict[str, Any]] = {}
    while JOIN_WITH not in said:
        said |= listen(inbox, lambda: False, 0.2)
    return next(word for word in said[JOIN_WITH]["command"].split() if "/p2p/" in word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--preset", default="xxs")
    args = parser.parse_args()
    plan = DemoPlan(args.peers, 1, args.preset, 0, True)
    inbox: Inbox = queue.SimpleQueue()
    processes: list[Process] = []
    address = ""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "SPEC.toml")
        spec.write_text(plan.spec_text(STEPS))
        common = ["--wait-for-members", str(args.peers), "--threads", "1", "--device", "cpu", "--identity", "none", "--json"]
        try:
            for number in range(args.peers):
                which = ["--new-run", str(spec)] if not number else ["--run", RUN_NAME, "--initial-peers", address]
                peer = [
                    "--listen",
                    LOOPBACK,
                    "--seed",
                    str(number),
                    "--steps",
                    str(STEPS),
                    "--out",
                    str(Path(folder, str(number))),
                ]
                processes.append(Process(f"peer {number + 1}", "legion_p2p.cli.peer", [*which, *peer, *common], inbox))
                if not number:
                    address = address_of_first(inbox)
            processes.append(Process("plain torch", "legion_p2p.cli.demo_lone", [str(spec), "--steps", str(STEPS)], inbox))
            threading.Thread(target=poll, args=(processes[:-1],), daemon=True).start()
            listen(inbox, lambda: all(process.is_warm for process in processes), START_S)
            listen(inbox, lambda: False, args.seconds)
        finally:
            for process in processes:
                process.popen.kill()
                process.popen.wait()
    *peers, plain = [process.ms_per_step() for process in processes]
    print("| | ms of CPU per step | times plain torch |\n|---|---|---|")
    print(f"| plain torch | {plain:.1f} | 1.00 |")
    for process, ms in zip(processes, peers, strict=False):
        print(f"| {process.label} | {ms:.1f} | {ms / plain:.2f} |")
    mean = statistics.mean(peers)
    print(f"| mean of the peers | {mean:.1f} | {mean / plain:.2f} |")


if __name__ == "__main__":
    main()
