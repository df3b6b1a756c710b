"""What the processes of the demo run: the module of each, and its arguments."""

from pathlib import Path
from typing import NamedTuple

from legion_p2p.cli.demo_plan import ALONE_ALL_TEXT, LOOPBACK, RUN_NAME, DemoPlan

PEER, BOOTSTRAP, LONE = "legion_p2p.cli.peer", "legion_p2p.cli.bootstrap", "legion_p2p.cli.demo_lone"
CALIBRATION_S = 2.0
CHECKPOINTS = 4  # while training

Command = tuple[str, list[str]]


class DemoPace(NamedTuple):
    """How long a peer trains, and how often it evaluates meanwhile."""

    n_steps: int
    n_evals: int
    train_s: float
    """About how long the whole demo trains."""


def bootstrap_command(key: Path) -> Command:
    return BOOTSTRAP, ["--listen", LOOPBACK, "--identity", str(key), "--dashboard", "no"]


def calibration_command(plan: DemoPlan, out: Path, label: str) -> Command:
    """Train for a moment, to tell how long a step takes."""
    seconds = str(min(CALIBRATION_S, 4 * plan.minutes))
    return LONE, [str(out / "SPEC.toml"), "--calibrate", seconds, "--times", str(_times(plan, label))]


def lone_command(plan: DemoPlan, out: Path, label: str, n_steps: int, n_evals: int) -> Command:
    """Train alone with plain torch."""
    args = [str(out / "SPEC.toml"), "--steps", str(n_steps), "--evals", str(n_evals)]
    return LONE, [*args, "--seed", str(plan.seed), "--times", str(_times(plan, label))]


def _times(plan: DemoPlan, label: str) -> int:
    """How many peers' text it reads in a step."""
    return plan.n_peers if label == ALONE_ALL_TEXT else 1


def peer_command(plan: DemoPlan, out: Path, label: str, contact: str, pace: DemoPace, *, creates: bool, wait_for: int) -> Command:
    """Create the run or join it, and train; `wait_for`: members to wait for before the first step, 0: none."""
    number = int(label.rpartition("-")[2])
    which = ["--new-run", str(out / "SPEC.toml")] if creates else ["--run", RUN_NAME]
    args = [
        *which, "--initial-peers", contact, "--steps", str(pace.n_steps), "--finish-together",
        "--threads", "1", "--device", "cpu", "--identity", "none",
        *plan.link_options(number), "--seed", str(plan.seed + number),
        "--out", str(out / label), "--json", "--dashboard", "no",
    ]  # fmt: skip
    if wait_for:
        args += ["--wait-for-members", str(wait_for)]
    if number == 1:
        args += ["--eval-every-s", f"{pace.train_s / pace.n_evals:.2f}"]
        args += ["--store", plan.store, "--checkpoint-every-s", f"{max(1.0, pace.train_s / CHECKPOINTS):.2f}"]
    return PEER, args
