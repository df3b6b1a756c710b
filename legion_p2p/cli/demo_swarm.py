"""Conducting the demo: processes, in what order they do what, what they say, and what comes of it.

    start      a bootstrap node; N peers and a lone one import what they need
    calibrate  all N + 1 train for a moment at once: so fast is this machine when they share it; the number of steps follows
    join       peer 1 founds the run, the others join it by its name through the bootstrap node and the DHT
    train      all make the same number of steps; the lone peer begins with the first of them
    judge      the common model is loaded, compared byte for byte between the peers, and evaluated

A peer that dies before the training begins is replaced (the others wait for as many as were planned), up to MAX_REPLACED times;
one that dies later is missed, and the rest go on while there are two, or one where no more were planned.
"""

import contextlib
import platform
import queue
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.cli.common import Signals, version_text
from legion_p2p.cli.demo_processes import ENDED, LINE, Child, Event, Family, poll_status
from legion_p2p.cli.demo_show import Show
from legion_p2p.observe import human
from legion_p2p.observe.status import Status

STATUS_EVERY_S = 0.7
CALIBRATION_S = 2.0
SWARM_OVERHEAD = 1.6  # time of a peer's step beside that of plain torch, on a machine that all share: measured
END_S = 8.0  # the last rounds, everybody's last evaluation, and the judgement: measured
JOIN_S = 4.0  # from the founder's order to the first step: measured
MIN_STEPS = 20
STEPS_PER_EVAL = 160  # an evaluation takes as long as 8 steps of plain torch, at a peer 5: some 3 %
MAX_EVALS = 30
MAX_REPLACED = 2
N_PARAMS = {"xxs": 252_384, "s": 836_736, "m": 4_852_992, "l": 25_567_744}  # about: here nobody imports torch to count them
MIN_SHARDS = 6  # two for each of three peers: the default sixteen cost the small model's rounds more than its training
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
RUN_NAME = "demo"
PEER, BOOTSTRAP, LONE = "legion_p2p.cli.peer", "legion_p2p.cli.bootstrap", "legion_p2p.cli.demo_lone"
ALONE = "lone"


class DemoError(Exception):
    """The demo cannot go on; the message says which process is to blame and its last words."""


class Interrupted(Exception):
    """Somebody pressed Ctrl+C, or the like."""


class Plan(msgspec.Struct, frozen=True):
    """What to do. The defaults of the training were chosen by measurement: docs/records/demo.md."""

    n_peers: int
    minutes: float
    preset: str
    seed: int
    lone: bool
    steps: int = 0
    """0: as many as fit into `minutes`."""
    local_steps: int = 5
    learning_rate: float = 3e-3
    batch: int = 4
    codec: str = "int8"

    @property
    def shard_elements(self) -> int:
        n_shards = max(MIN_SHARDS, self.n_peers)
        return 512 * -(-N_PARAMS[self.preset] // (512 * n_shards)) if self.preset in N_PARAMS else 0

    def spec_text(self, n_steps: int) -> str:
        """SPEC.toml of the run."""
        return "\n".join([
            f'name = "{RUN_NAME}"', f'preset = "{self.preset}"', 'data = "stdlib"', f"seed = {self.seed}", "",
            "[round]", f"local_steps = {self.local_steps}", f'push_codec = "{self.codec}"', f'update_codec = "{self.codec}"',
            f"shard_elements = {self.shard_elements}", "",
            "[inner]", f"learning_rate = {self.learning_rate}", f"batch = {self.batch}", f"decay_steps = {n_steps}",
            f"warmup_steps = {min(50, max(1, n_steps // 10))}", "",
        ])  # fmt: skip


class Peer:
    """What is known of one peer or of the lone one."""

    def __init__(self, label: str, child: Child) -> None:
        self.label = label
        self.child = child
        self.loaded = False
        self.step_s: float | None = None
        self.address = ""
        self.status: Status | None = None
        self.losses: list[tuple[int, float]] = []
        self.evals: list[tuple[int, float]] = []
        self.step_times: list[float] = []
        self.rounds: list[tuple[int, float]] = []
        self.averaged: list[float] = []
        self.finished: Event | None = None
        self.exit_code: int | None = None

    @property
    def lost(self) -> bool:
        return self.exit_code is not None and (self.finished is None or self.exit_code != 0)

    @property
    def settled(self) -> bool:
        """Nothing more is to come from it."""
        return self.exit_code is not None


def conduct(plan: Plan, out: Path, show: Show, signals: Signals) -> dict[str, Any]:
    """Run the demo; what came of it, as it stands in summary.json. Every process it started has ended when this returns.

    Raises: DemoError; Interrupted.
    """
    with Family() as family:
        demo = _Demo(plan, out, show, family)
        signals.orderly(lambda _: demo.interrupt())
        demo.train()
    if demo.interrupted:
        raise Interrupted
    # from here on no process is left, and nothing is lost when this one ends at once
    signals.orderly(lambda number: _leave(show, number))
    return demo.judge()


def _leave(show: Show, number: int) -> None:
    import os

    show.close_at_once()
    os._exit(128 + number)


class _Demo:
    def __init__(self, plan: Plan, out: Path, show: Show, family: Family) -> None:
        self.plan = plan
        self.out = out
        self.show = show
        self.family = family
        self.began = time.monotonic()
        self.interrupted = False
        self.contact = ""
        self.peers: dict[str, Peer] = {}
        self.lone: Peer | None = None
        self.lost: list[str] = []
        self.n_steps = plan.steps
        self.n_replaced = 0
        self.training = False
        self.evaluated_every_s = 0.0

    def interrupt(self) -> None:
        self.interrupted = True
        self.family.ask_to_leave()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    # what is done, in order

    def train(self) -> None:
        plan = self.plan
        patience_s = 60 + 60 * plan.minutes  # a machine that is busy with something else may be this slow, not slower
        self.show.phase("starting processes")
        key = self.out / "bootstrap" / "identity.key"
        self.bootstrap = self.family.start("bootstrap", self.out / "bootstrap" / "log.txt", preload=False)
        self.bootstrap.run(BOOTSTRAP, ["--listen", LOOPBACK, "--identity", str(key)])
        for n in range(plan.n_peers):
            self._start_peer(f"peer-{n + 1}")
        if plan.lone:
            self.lone = Peer(ALONE, self.family.start(ALONE, self.out / ALONE / "log.txt"))
        poll_status(self._status_addresses, self._heard, STATUS_EVERY_S)
        everyone = [*self.peers.values(), *([self.lone] if self.lone else [])]
        self._until(lambda: bool(self.contact) and all(p.loaded for p in everyone), patience_s, "all processes have started")
        if not self.n_steps:
            self._calibrate(everyone, patience_s)
        (self.out / "SPEC.toml").write_text(plan.spec_text(self.n_steps))
        self.show.phase("joining")
        founder = self.peers["peer-1"]
        self._send_off(founder)
        self._until(lambda: bool(founder.address), patience_s, "peer-1 has founded the run")
        for peer in list(self.peers.values())[1:]:
            self._send_off(peer)
        self._until(self._has_begun, patience_s, "all peers have joined")
        self.training = True
        self.show.phase("training")
        if self.lone is not None:
            n_evals = str(self._n_evals())
            args = [str(self.out / "SPEC.toml"), "--steps", str(self.n_steps), "--evals", n_evals, "--seed", str(plan.seed)]
            self.lone.child.run(LONE, args)
        self._until(lambda: all(p.settled for p in self.peers.values()), 3 * patience_s, "all peers are done")
        if self.lone is not None and self.lone.finished is None and not self.lone.settled:
            self.show.phase("waiting for the lone peer")
            self._until(lambda: self.lone is None or self.lone.finished is not None, 3 * patience_s, "the lone peer is done")
        self.show.phase("judging")
        with contextlib.suppress(OSError):
            key.unlink()

    def _calibrate(self, everyone: list[Peer], patience_s: float) -> None:
        self.show.phase("measuring this machine")
        spec = self.out / "SPEC.toml"
        spec.write_text(self.plan.spec_text(1000))
        for peer in everyone:
            peer.child.run(LONE, [str(spec), "--calibrate", str(min(CALIBRATION_S, 4 * self.plan.minutes))])
        self._until(lambda: all(p.step_s or p.settled for p in everyone), patience_s, "the machine is measured")
        times = [p.step_s for p in everyone if p.step_s]
        left_s = 60 * self.plan.minutes - self.elapsed_s - min(JOIN_S + END_S, 15 * self.plan.minutes)
        n_steps = int(left_s / (SWARM_OVERHEAD * sum(times) / len(times))) if times else 0
        self.n_steps = max(MIN_STEPS, n_steps)
        self.train_s = max(5.0, left_s)
        step_ms = 1000 * sum(times) / max(1, len(times))
        self.show.note(f"{step_ms:.1f} ms per step with all at work: {human.whole_text(self.n_steps)} steps each")

    def _n_evals(self) -> int:
        return min(MAX_EVALS, max(4, self.n_steps // STEPS_PER_EVAL))

    def _start_peer(self, label: str) -> Peer:
        peer = Peer(label, self.family.start(label, self.out / label / "log.txt"))
        self.peers[label] = peer
        return peer

    def _send_off(self, peer: Peer) -> None:
        """Found the run or join it, and train."""
        number = int(peer.label.rpartition("-")[2])
        first = number == 1 and not any(p.address for p in self.peers.values())
        which = ["--new-run", str(self.out / "SPEC.toml")] if first else ["--run", RUN_NAME]
        args = [
            *which, "--initial-peers", self.contact, "--steps", str(self.n_steps), "--finish-together",
            "--wait-for-members", str(self.plan.n_peers), "--threads", "1", "--device", "cpu", "--identity", "none",
            "--listen", LOOPBACK, "--seed", str(self.plan.seed + number), "--out", str(self.out / peer.label), "--json",
        ]  # fmt: skip
        if number == 1:
            train_s = getattr(self, "train_s", 30.0)
            args += ["--eval-every", f"{train_s / self._n_evals():.2f}"]
        peer.child.run(PEER, args)

    def _has_begun(self) -> bool:
        return all(p.losses for p in self.peers.values())

    # what is heard

    def _until(self, so: Callable[[], bool], within_s: float, what: str) -> None:
        """Listen until something is so. Raises: DemoError, if it is not in time or cannot be any more; Interrupted."""
        deadline = time.monotonic() + within_s
        while not so():
            if time.monotonic() > deadline:
                raise DemoError(f"not within {human.seconds_text(within_s)}: {what}{self._logs()}")
            with contextlib.suppress(queue.Empty):
                self._hear(*self.family.inbox.get(timeout=0.2))
            self.show.tick()
            if self.interrupted:
                raise Interrupted

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
        peer = next((p for p in (*self.peers.values(), self.lone) if p is not None and p.child is child), None)
        if peer is None:  # it was replaced
            return
        if name == "loaded":
            peer.loaded = True
            if self.n_replaced and peer.label in self.peers and self.n_steps and self._founded():
                self._send_off(peer)
        elif name == "calibrated":
            peer.step_s = float(event["step_s"])
        elif name == "status.served":
            peer.address = str(event["address"])
        elif name == "step":
            peer.losses.append((event["step"], event["loss"]))
            peer.step_times.append(event["at"])
            if peer is self.lone:
                self.show.lone(event["step"], event["loss"], event["tokens_per_s"], self.n_steps)
        elif name == "eval":
            peer.evals.append((event["step"], event["val_loss"]))
        elif name == "round.closed":
            peer.rounds.append((event["version"], event["at"]))
            peer.averaged.append(event.get("averaged_fraction", 1.0))
        elif name in ("run.finished", "lone.finished"):
            peer.finished = event
            if peer is self.lone:
                self.show.lone(event["step"], event["val_loss"], event["tokens_per_s"], self.n_steps, "done")
                peer.child.signal(15)
        elif name == ENDED:
            self._ended(peer, int(event["code"]))

    def _founded(self) -> bool:
        return any(p.address and not p.settled for p in self.peers.values())

    def _ended(self, peer: Peer, code: int) -> None:
        peer.exit_code = code
        if peer is self.lone:
            if peer.finished is None:
                self._tell_of(peer.label, peer.child, code)
                self.lone = None
            return
        if not peer.lost:
            self.show.state(peer.label, "done")
            return
        self.show.state(peer.label, "lost")
        self._tell_of(peer.label, peer.child, code)
        if not self.training:
            self.n_replaced += 1
            if self.n_replaced > MAX_REPLACED or (peer.label == "peer-1" and not self._founded() and self.n_steps):
                raise DemoError(f"{peer.label} ended with code {code} before the training began{_said(peer.child)}")
            self._start_peer(peer.label)
            return
        left = [p for p in self.peers.values() if not p.lost]
        if len(left) < min(2, self.plan.n_peers):
            raise DemoError(f"too few peers are left: {'; '.join(self.lost)}{_said(peer.child)}")

    def _tell_of(self, label: str, child: Child, code: int) -> None:
        words = child.last_words()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self.lost.append(f"{label} {how}")
        self.show.note(f"{label} {how}{': ' + words[-1] if words else ''}")

    def _logs(self) -> str:
        waiting = [p for p in (*self.peers.values(), *([self.lone] if self.lone else [])) if not p.settled]
        return "".join(f"\n{p.label} is at step {p.losses[-1][0] if p.losses else 0}{_said(p.child)}" for p in waiting)

    def _status_addresses(self) -> dict[str, str]:
        return {p.label: p.address for p in list(self.peers.values()) if p.address and not p.settled}

    def _heard(self, label: str, status: Status) -> None:
        self.peers[label].status = status
        self.show.status(label, status)

    # what came of it

    def judge(self) -> dict[str, Any]:
        from legion_p2p.cli.demo_judge import judged_model

        plan = self.plan
        done = [p for p in self.peers.values() if p.finished is not None]
        model = judged_model(self.out / "SPEC.toml", [self.out / p.label / "model.safetensors" for p in done], plan.seed)
        digests = {p.label: str((p.finished or {}).get("digest", "")) for p in done}
        equal = len(set(digests.values())) == 1 and model.same_bytes and len(done) >= min(2, plan.n_peers)
        ids = {p.label: p.status.peer_id if p.status else p.label for p in done}
        finished = [p.finished for p in done if p.finished]
        starts = [p.step_times[0] for p in done if p.step_times]
        ends = [p.step_times[-1] for p in done if p.step_times]
        train_s = max(ends, default=0.0) - min(starts, default=0.0)
        alone = self.lone.finished if self.lone and self.lone.finished else None
        n_rounds, period_s = _rounds(done)
        n_steps = max((f["step"] for f in finished), default=0)
        lone_note = (
            f"The lone peer ran beside the swarm on this machine: plain torch, the same model and first weights, "
            f"{plan.batch} windows a step from the same text, the same schedule, and as many steps as each peer. "
            f"So the swarm has read {len(done)} times as much text: compared are equal steps of each peer, not equal text."
        )
        lone_evals = self.lone.evals if self.lone else []
        curves = {
            "swarm_validation": [  # before the first step the two are the same model
                *lone_evals[:1],
                *_evals(done),
                *([(n_steps, model.curve_loss)] if model.curve_loss is not None else []),
            ],
            "lone_validation": lone_evals,
            "training": {p.label: p.losses for p in done} | ({ALONE: self.lone.losses} if self.lone else {}),
            "final": {"step": n_steps, "swarm": model.val_loss, "lone": alone["val_loss"] if alone else None},
            "windows": {"curves": model.n_curve_windows, "final": model.n_windows},
        }
        verdict = f"equal at all {len(done)}, and their files are the same bit for bit"
        summary = {
            "run": RUN_NAME,
            "n_peers": plan.n_peers,
            "local_steps": n_steps,
            "tokens": sum(f["tokens"] for f in finished),
            "swarm_val_loss": model.val_loss,
            "lone_val_loss": alone["val_loss"] if alone else None,
            "lone_note": lone_note if alone else "no lone peer was trained",
            "digests": {ids[label]: digest for label, digest in digests.items()},
            "digests_equal": equal,
            "verdict": verdict if equal else "NOT EQUAL: this is a bug, please report it with the folder",
            "peers": ids,
            "lost": self.lost,
            "rounds": n_rounds,
            "round_period_s": round(period_s, 4),
            "averaged_fraction": _mean(f for p in done for f in p.averaged),
            "swarm_tokens_per_s": round(sum(f["tokens"] for f in finished) / train_s, 1) if train_s else 0.0,
            "lone_tokens_per_s": alone["tokens_per_s"] if alone else None,
            "swarm_train_s": round(train_s, 2),
            "lone_train_s": alone["train_s"] if alone else None,
            "blocked_fraction": _mean(f["blocked_fraction"] for f in finished),
            "sent_bytes": sum(f["sent_bytes"] for f in finished),
            "received_bytes": sum(f["received_bytes"] for f in finished),
            "sample": model.sample,
            "settings": msgspec.to_builtins(plan),
            "n_params": model.n_params,
            "legion_p2p": version_text().split()[-1],
            "python": platform.python_version(),
            "torch": model.torch_version,
            "machine": {"system": platform.system(), "cores": _n_cores()},
        }
        (self.out / "curves.json").write_bytes(msgspec.json.encode(curves))
        from legion_p2p.dashboard.plot import draw_demo

        draw_demo(curves, self.out / "curves.png", n_peers=plan.n_peers, n_params=model.n_params)
        self.show.close()
        summary["wall_s"] = round(self.elapsed_s, 2)
        (self.out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
        return summary


def _evals(peers: list[Peer]) -> list[tuple[int, float]]:
    return next((p.evals for p in peers if p.evals), [])


def _rounds(peers: list[Peer]) -> tuple[int, float]:
    """Rounds in all, each of every shard, and the mean time from one to the next."""
    seen = sorted(r for p in peers for r in p.rounds)
    if len(seen) < 2:
        return len(seen), 0.0
    n_rounds = seen[-1][0]
    times = [at for _, at in seen]
    return n_rounds, (max(times) - min(times)) / max(1, n_rounds - seen[0][0])


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(sum(known) / len(known), 5) if known else None


def _said(child: Child) -> str:
    words = child.last_words()
    if not words:
        return f" ({child.log} is empty)"
    return f"; the end of {child.log}:\n" + "\n".join(f"  {human.clean(line)}" for line in words)


def _n_cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
