"""Several processes of torch.distributed as one peer: DistributedDataParallel and FSDP2 inside, over gloo."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from processes import HERE, ROOT, Process

from tests.forking import ForkServer
from tests.joint_batch import BATCH, plain_losses
from tests.ports import free_port
from tests.waiting import PATIENCE_S

STEPS = 20
Launch = Callable[..., Process]


@pytest.fixture
def launch(tmp_path: Path, forks: ForkServer) -> Iterator[Launch]:
    """Starts the ranks of one peer: `launch(kind, n_ranks, run, address, steps)`."""
    started: list[Process] = []
    files = (tmp_path / f"ranks-{i}" for i in itertools.count())

    def start(kind: str, size: int, run: str, address: str = "none", steps: int = STEPS) -> Process:
        words = (kind, str(size), str(next(files)), run, address, str(steps))
        started.append(Process(str(HERE / "rank_worker.py"), *words, forks=forks))
        return started[-1]

    yield start
    for process in started:
        process.close()


def trained(process: Process, size: int) -> list[dict[str, Any]]:
    """What each rank has at the end, by rank."""
    for _ in range(size):
        process.wait_for("trained")
    return sorted(process.events("trained"), key=lambda said: int(said["rank"]))


@pytest.mark.parametrize(("kind", "size"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)])
def test_several_ranks_train_as_one_process_with_the_whole_batch(launch: Launch, kind: str, size: int) -> None:
    ranks = trained(launch(kind, size, f"ranks/{kind}{size}"), size)

    losses = [mean(parts) for parts in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(plain_losses(STEPS), rel=1e-5)
    assert all(rank["model"] == ranks[0]["model"] for rank in ranks)
    assert {(r["steps"], r["tokens"], r["run_step"], r["digest"]) for r in ranks} == {
        (STEPS, STEPS * BATCH, STEPS, ranks[0]["digest"])
    }


def test_a_peer_of_two_ranks_and_one_of_a_single_process_end_with_the_same_model(launch: Launch) -> None:
    two = launch("fsdp", 2, "ranks/together")
    one = launch("plain", 1, "ranks/together", two.wait_for("in_run")["address"])

    ranks, (alone,) = trained(two, 2), trained(one, 1)

    assert ranks[0]["model"] == ranks[1]["model"] == alone["model"]
    assert ranks[0]["digest"] == ranks[1]["digest"] == alone["digest"]
    assert ranks[0]["losses"] != plain_losses(STEPS)  # the other's training is in it


def test_when_a_rank_dies_its_peer_leaves_and_the_swarm_goes_on(launch: Launch) -> None:
    one = launch("plain", 1, "ranks/together", steps=400)
    address = one.wait_for("in_run")["address"]
    two = launch("dies", 2, "ranks/together", address, steps=400)

    assert two.wait() != 0 and "Traceback" in two.stderr(), two.story()
    (alone,) = trained(one, 1)

    assert alone["steps"] == 400 and not two.events("trained")
    assert "DEAD" not in {said["after"] for said in one.events("member")}, one.story()


def peer_of(forks: ForkServer, folder: Path, n_ranks: int, batch: int = 4) -> dict[str, Any]:
    """What legion-peer with that many processes says at its end; all have one key, so that they read the same text."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks))
    words = (
        "-m", "legion_p2p.cli.peer", "--new-run", "ranks/peer", "--preset", "xxs", "--batch", str(batch),
        "--identity", str(folder / "key"), "--store", "none", "--steps", "6", "--json", "--no-status", "--dashboard", "no",
        "--lan", "no", "--port-mapping", "no", "--listen", "/ip4/127.0.0.1/tcp/0", "--device", "cpu", "--threads", "1",
    )  # fmt: skip
    done = forks.run(
        [sys.executable, *(torchrun if n_ranks > 1 else ()), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, timeout=240, starts_others=True,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {"code": done.returncode, "stderr": done.stderr, "ends": [said for said in events if said["event"] == "peer.left"]}


def test_legion_peer_under_torchrun_is_one_peer_that_learns_as_one_process_does(tmp_path: Path, forks: ForkServer) -> None:
    alone, together = (peer_of(forks, tmp_path, n_ranks) for n_ranks in (1, 2))

    assert together["code"] == 0, together["stderr"]
    (one,), (two,) = alone["ends"], together["ends"]
    assert (two["steps"], two["tokens"], two["reason"]) == (6, 6 * 4 * 64, "steps")
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)


def test_processes_compute_a_batch_as_one_does_and_know_when_another_has_died(forks: ForkServer) -> None:
    port = str(free_port())
    one, other = (
        forks.popen(
            [sys.executable, str(HERE / "rank_work_worker.py"), rank, port],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    )  # fmt: skip

    said, _ = one.communicate(timeout=PATIENCE_S)

    *steps, end = said.splitlines()
    assert other.wait(PATIENCE_S) == 9 and one.returncode == 0, said
    assert len(steps) == 2, said
    differences = [float(number) for number in re.findall(r"by ([0-9.e+-]+)", "\n".join(steps))]
    assert len(differences) == 4 and max(differences) < 1e-5
    assert end == "closed: another process of this peer is gone, as rank 0 of 2 sees it"


def test_more_processes_than_a_step_has_windows_are_refused(tmp_path: Path, forks: ForkServer) -> None:
    refused = peer_of(forks, tmp_path, 2, batch=1)

    assert refused["code"] != 0 and not refused["ends"]
    assert "a step of run 'ranks/peer' has 1 windows, too few for 2 processes" in refused["stderr"]


def test_the_example_runs_under_torchrun(tmp_path: Path, forks: ForkServer) -> None:
    words = ("--standalone", "--nproc-per-node", "2", str(ROOT / "examples" / "05_several_gpus.py"), "--seconds", "1", "--fsdp")
    done = forks.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, starts_others=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    ends = [line.partition(":")[2] for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(ends) == 2 and len({line.rpartition(" after ")[2] for line in ends}) == 1, done.stdout
