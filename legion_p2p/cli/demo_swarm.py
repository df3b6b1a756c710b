"""Running the demo: processes, in what order they do what, what they say, and what comes of it.

    start      a bootstrap node; N peers and a lone one import what they need
    calibrate  all N + 1 train for a moment at once: so fast is this machine when they share it; the number of steps follows
    join       peer 1 creates the run, the others join it by its name through the bootstrap node and the DHT
    train      all make the same number of steps; two train alone meanwhile, one of them on as much text as all together.
               In the middle one peer is killed (kill -9), and another joins and makes the steps that are left
    judge      the common model is loaded, compared byte for byte between the peers, and evaluated

A peer that dies before the training begins is replaced (the others wait for as many as were planned), up to MAX_REPLACED times;
one that dies later is missed, and the rest go on while there are two, or one where no more were planned.
"""

import contextlib
import os
import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from legion_p2p.cli.demo_commands import DemoPace, bootstrap_command, calibration_command, lone_command, peer_command
from legion_p2p.cli.demo_page import DemoRecord
from legion_p2p.cli.demo_plan import ALONE, ALONE_ALL_TEXT, Contestants, DemoPeer, DemoPlan
from legion_p2p.cli.demo_processes import ENDED, LINE, Child, Event, ProcessGroup, poll_status
from legion_p2p.cli.demo_view import DemoView
from legion_p2p.cli.signals import Signals
from legion_p2p.observe import human
from legion_p2p.observe.status import Status

STATUS_EVERY_S = 0.7
SWARM_OVERHEAD = 1.8  # CPU time of a step of a peer, beside that of plain torch: measured for the smallest model
END_S = 8.0  # the last rounds, the last evaluation of every peer, and the comparison: measured
JOIN_S = 4.0  # from the creator's order to the first step: measured
MIN_STEPS = 20
STEPS_PER_EVAL = 60  # an evaluation takes as long as 4 steps of plain torch: some 5 %
MIN_EVALS, MAX_EVALS = 8, 30
MAX_REPLACED = 2
KILL_AT, JOIN_AT = 1 / 3, 1 / 2  # of the steps
MIN_LEFT_S = 30.0  # joining takes 4 s on an idle machine, 10 to 15 on one that is busy with other work


class DemoError(Exception):
    """The demo cannot go on; the message says which process is to blame and the last lines of its log."""


class Interrupted(Exception):
    """Somebody pressed Ctrl+C, or the like."""


def run_demo(plan: DemoPlan, out: Path, view: DemoView, record: DemoRecord, signals: Signals) -> dict[str, Any]:
    """Run the demo; what came of it, as it stands in summary.json. Every process it started has ended when this returns.

    Raises: DemoError; Interrupted.
    """
    began = time.monotonic()
    with ProcessGroup() as processes:
        demo = _Demo(plan, out, view, record, processes, began)
        signals.orderly(lambda _: demo.interrupt())
        demo.train()
    if demo.interrupted:
        raise Interrupted
    # from here on no process is left, and nothing is lost when this one ends at once
    signals.orderly(lambda number: _leave(view, number))
    from legion_p2p.cli.demo_evaluation import judge

    view.phase("judging")
    record.phase("judging")
    return judge(plan, demo.contestants, demo.lost, out, began)


def is_worth_a_join(spent_s: float, step: int, n_steps: int) -> bool:
    """Whether enough time is left for a peer that joins now to train with the others: they end without one that is not there
    yet."""
    return (n_steps - step) * spent_s / max(1, step) >= MIN_LEFT_S


def _leave(view: DemoView, number: int) -> None:
    view.close_at_once()
    os._exit(128 + number)


class _Demo:
    def __init__(
        self, plan: DemoPlan, out: Path, view: DemoView, record: DemoRecord, processes: ProcessGroup, began: float
    ) -> None:
        self.plan = plan
        self.out = out
        self.view = view
        self.record = record
        self.processes = processes
        self.began = began
        self.interrupted = False
        self.contact = ""
        self.peers: dict[str, DemoPeer] = {}
        self.alone: dict[str, DemoPeer] = {}
        self.spare: DemoPeer | None = None
        """Joins in the middle; until then it has only imported what it needs."""
        self.killed = ""
        """Label of the peer that was killed on purpose."""
        self.lost: list[str] = []
        self.n_steps = plan.steps
        self.n_replaced = 0
        self.sent_off: set[str] = set()
        self.train_s = 30.0
        self.training = False
        self.trains_since = 0.0

    def interrupt(self) -> None:
        self.interrupted = True
        self.processes.ask_to_leave()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    # what is done, in order

    def train(self) -> None:
        plan = self.plan
        patience_s = 60 + 60 * plan.minutes  # a machine that is busy with something else may be this slow, not slower
        self._phase("starting processes")
        key = self.out / "bootstrap" / "identity.key"
        self.bootstrap = self.processes.start("bootstrap", self.out / "bootstrap" / "log.txt", preload=False)
        self.bootstrap.run(*bootstrap_command(key))
        for n in range(plan.n_peers):
            self._start_peer(f"peer-{n + 1}")
        for label in (ALONE, ALONE_ALL_TEXT) if plan.lone else ():
            self.alone[label] = DemoPeer(label, self.processes.start(label, self.out / label / "log.txt"))
        if plan.kills:
            label = f"peer-{plan.n_peers + 1}"
            self.spare = DemoPeer(label, self.processes.start(label, self.out / label / "log.txt"))
        poll_status(self._status_addresses, self._heard, STATUS_EVERY_S)
        everyone = [*self.peers.values(), *self.alone.values()]
        started = "all processes have started"
        self._until(lambda: bool(self.contact) and all(p.loaded or p.settled for p in everyone), patience_s, started)
        if not self.n_steps:
            self._calibrate(everyone, patience_s)
        (self.out / "SPEC.toml").write_text(plan.spec_text(self.n_steps))
        self._phase("joining")
        self._send_off(self.peers["peer-1"])
        self._until(lambda: bool(self.peers["peer-1"].address), patience_s, "peer-1 has created the run")
        for peer in list(self.peers.values())[1:]:
            self._send_off(peer)
        self._until(self._has_begun, patience_s, "all peers have joined")
        self.training = True
        self.trains_since = time.monotonic()
        self._phase("training")
        for peer in self.alone.values():
            peer.child.run(*lone_command(plan, self.out, peer.label, self.n_steps, self._n_evals()))
        if self.spare is not None:
            self._kill_one_and_let_another_join(self.spare, 3 * patience_s)
        self._until(lambda: all(p.settled for p in self.peers.values()), 3 * patience_s, "all peers are done")
        if not self._are_done_alone():
            self._phase("waiting for those that train alone")
            self._until(self._are_done_alone, 3 * patience_s, "those that train alone are done")
        with contextlib.suppress(OSError):
            key.unlink()

    def _are_done_alone(self) -> bool:
        return all(peer.finished is not None or peer.settled for peer in self.alone.values())

    def _phase(self, text: str) -> None:
        self.view.phase(text)
        self.record.phase(text)

    def _step(self) -> int:
        """Where the slowest of the peers is that still train."""
        return min((p.losses[-1][0] for p in self.peers.values() if p.losses and not p.settled), default=self.n_steps)

    def _kill_one_and_let_another_join(self, spare: DemoPeer, within_s: float) -> None:
        self._until(lambda: self._step() >= KILL_AT * self.n_steps, within_s, "a third of the steps are made")
        victim = self.peers[f"peer-{self.plan.n_peers}"]
        spent_s = time.monotonic() - self.trains_since
        if victim.settled or not is_worth_a_join(spent_s, self._step(), self.n_steps):
            return
        self.killed = victim.label
        self.record.mark(f"{victim.label} is killed (kill -9)")
        self.view.note(f"{victim.label} is killed (kill -9), at step {human.whole_text(victim.losses[-1][0])}")
        victim.child.signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self._until(lambda: self._step() >= JOIN_AT * self.n_steps and (spare.loaded or spare.settled), within_s, "half is made")
        self.peers[spare.label] = spare
        self.view.note(f"{spare.label} joins, at step {human.whole_text(self._step())} of the others")
        self._send_off(spare, max(MIN_STEPS, self.n_steps - self._step()))
        self._until(lambda: bool(spare.losses) or spare.settled, within_s, f"{spare.label} has joined")
        self.record.mark(f"{spare.label} has joined")

    @property
    def contestants(self) -> Contestants:
        """Whose results are compared."""
        joined = self.spare.label if self.spare is not None and self.spare.finished else ""
        return Contestants(list(self.peers.values()), self.alone.get(ALONE), self.alone.get(ALONE_ALL_TEXT), self.killed, joined)

    def _calibrate(self, everyone: list[DemoPeer], patience_s: float) -> None:
        self._phase("measuring this machine")
        (self.out / "SPEC.toml").write_text(self.plan.spec_text(1000))
        for peer in everyone:
            peer.child.run(*calibration_command(self.plan, self.out, peer.label))
        self._until(lambda: all(p.step_s or p.settled for p in everyone), patience_s, "the machine is measured")
        times = [p.step_s for p in everyone if p.step_s and p.label != ALONE_ALL_TEXT]
        left_s = 60 * self.plan.minutes - self.elapsed_s - min(JOIN_S + END_S, 15 * self.plan.minutes)
        n_steps = int(left_s / (SWARM_OVERHEAD * sum(times) / len(times))) if times else 0
        self.n_steps = max(MIN_STEPS, n_steps)
        self.train_s = max(5.0, left_s)
        step_ms = 1000 * sum(times) / max(1, len(times))
        self.view.note(f"{step_ms:.1f} ms per step with all at work: {human.whole_text(self.n_steps)} steps each")

    def _n_evals(self) -> int:
        return min(MAX_EVALS, max(MIN_EVALS, self.n_steps // STEPS_PER_EVAL))

    def _start_peer(self, label: str) -> DemoPeer:
        peer = DemoPeer(label, self.processes.start(label, self.out / label / "log.txt"))
        self.peers[label] = peer
        return peer

    def _send_off(self, peer: DemoPeer, n_steps: int = 0) -> None:
        """Create the run or join it, and make this many steps; 0: all."""
        self.sent_off.add(peer.label)
        number = int(peer.label.rpartition("-")[2])
        creates = number == 1 and not self._has_creator()
        pace = DemoPace(n_steps or self.n_steps, self._n_evals(), self.train_s)
        wait_for = 0 if n_steps else self.plan.n_peers
        peer.child.run(*peer_command(self.plan, self.out, peer.label, self.contact, pace, creates=creates, wait_for=wait_for))

    def _has_begun(self) -> bool:
        return all(p.losses for p in self.peers.values())

    # what is heard

    def _until(self, so: Callable[[], bool], within_s: float, what: str) -> None:
        """Listen until something is so. Raises: DemoError, if it is not in time or cannot be any more; Interrupted."""
        deadline = time.monotonic() + within_s
        while not so():
            if time.monotonic() > deadline:
                raise DemoError(f"not within {human.seconds_text(within_s)}: {what}{self._logs()}")
            heard = None
            with contextlib.suppress(queue.Empty):
                heard = self.processes.inbox.get(timeout=0.2)
            if self.interrupted:
                raise Interrupted
            if heard is not None:
                self._hear(*heard)
            self.view.tick()

    def _hear(self, child: Child, event: Event) -> None:
        name = event.get("event")
        if child is self.bootstrap:
            if name == LINE and str(event["text"]).startswith("--initial-peers "):
                self.contact = str(event["text"]).split()[1]
            elif name == ENDED and not self.interrupted:
                self._tell_of("bootstrap", child, event["code"])
                if not self.training:
                    raise DemoError(f"the bootstrap node ended with code {event['code']}{_said(child)}")
            return
        known = (*self.peers.values(), *self.alone.values(), *([self.spare] if self.spare else []))
        peer = next((p for p in known if p.child is child), None)
        if peer is None:  # it was replaced
            return
        self.record.hear(peer.label, event)
        if name == "loaded":
            peer.loaded = True
        elif name == "calibrated":
            peer.step_s = float(event["step_s"])
        elif name == "status.served":
            peer.address = str(event["address"])
        elif name == "step":
            peer.losses.append((event["step"], event["loss"]))
            peer.step_times.append(event["at"])
            if peer.label == ALONE:
                self.view.lone(event["step"], event["loss"], event["tokens_per_s"], self.n_steps)
        elif name == "eval":
            peer.evals.append((event["step"], event["val_loss"]))
        elif name == "round.closed":
            peer.rounds.append((event["version"], event["at"]))
            peer.averaged.append(event.get("averaged_fraction", 1.0))
        elif name == "checkpoint.stored":
            peer.checkpoint = str(event["cid"])
        elif name in ("run.finished", "lone.finished"):
            peer.finished = event
            if peer.label == ALONE:
                self.view.lone(event["step"], event["val_loss"], event["tokens_per_s"], self.n_steps, "done")
            if peer.label in self.alone:
                peer.child.signal(signal.SIGTERM)
        elif name == ENDED:
            self._ended(peer, int(event["code"]))

    def _has_creator(self) -> bool:
        return any(p.address and not p.settled for p in self.peers.values())

    def _ended(self, peer: DemoPeer, code: int) -> None:
        peer.exit_code = code
        if peer.label in self.alone:
            if peer.finished is None:
                self._tell_of(peer.label, peer.child, code)
                del self.alone[peer.label]
            return
        word = "done" if not peer.lost else "killed" if peer.label == self.killed else "lost"
        self.view.state(peer.label, word)
        self.record.state(peer.label, word)
        if word != "lost":
            return
        self._tell_of(peer.label, peer.child, code)
        if not self.training:
            self.n_replaced += 1
            if self.n_replaced > MAX_REPLACED:
                raise DemoError(f"{peer.label} ended with code {code} before the training began{_said(peer.child)}")
            self.lost[-1] += " and was replaced"
            new = self._start_peer(peer.label)
            if new.label in self.sent_off:
                self._send_off(new)
            return
        left = [p for p in self.peers.values() if not p.lost]
        if len(left) < min(2, self.plan.n_peers):
            raise DemoError(f"too few peers are left: {'; '.join(self.lost)}{_said(peer.child)}")

    def _tell_of(self, label: str, child: Child, code: int) -> None:
        words = child.last_words()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self.lost.append(f"{label} {how}")
        self.view.note(f"{label} {how}{': ' + words[-1] if words else ''}")

    def _logs(self) -> str:
        waiting = [p for p in (*self.peers.values(), *self.alone.values()) if not p.settled]
        return "".join(f"\n{p.label} is at step {p.losses[-1][0] if p.losses else 0}{_said(p.child)}" for p in waiting)

    def _status_addresses(self) -> dict[str, str]:
        return {p.label: p.address for p in list(self.peers.values()) if p.address and not p.settled}

    def _heard(self, label: str, status: Status) -> None:
        self.peers[label].status = status
        self.view.status(label, status)
        self.record.status(label, status)


def _said(child: Child) -> str:
    words = child.last_words()
    if not words:
        return f" ({child.log} is empty)"
    return f"; the end of {child.log}:\n" + "\n".join(f"  {human.clean(line)}" for line in words)
