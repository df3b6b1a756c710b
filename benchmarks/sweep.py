"""Many runs of a swarm side by side: which settings bring it near one process with the same optimizer.

    python benchmarks/sweep.py --jobs 12 --minutes 8 --out FOLDER
    python benchmarks/sweep.py --list
    python benchmarks/sweep.py --jobs 2 --minutes 5 --groups late late-more --seeds 0 --out FOLDER

Each run is one of benchmarks/_lockstep.py, in a process with one thread. Groups come in the order of their worth, and within a
group the quick runs do not wait for the slow ones. A run that is over is at once a line of FOLDER/runs.jsonl, and is not made
again; FOLDER/sweep.md has the tables of what there is, and is written every few seconds. The program ends by itself after
--minutes, and what is unfinished then is left out. The text is the source of Python's standard library: the interpreter's own, or
that of another version whose folder the environment variable STDLIB names, so that figures of different machines compare.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _lockstep import AVERAGES, train
from _tasks import stdlib, tales

Run = dict[str, Any]
RATES = {
    "text": {"adamw": (6e-3, 12e-3, 24e-3), "muon": (0.02, 0.03, 0.06), "sgd": (0.3, 1.0, 2.0), "adafactor": (0.03, 0.06, 0.12)},
    "table": {"adamw": (1e-3, 3e-3, 1e-2), "muon": (3e-3, 1e-2, 3e-2), "sgd": (0.01, 0.03, 0.1), "adafactor": (3e-3, 1e-2, 3e-2)},
}
PLAIN = {"restore_length": 0.0}
MOMENTUM = {"outer": "nesterov", "outer_learning_rate": 0.8, "outer_momentum": 0.9}
CANDIDATES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "half restored": {"restore_length": 0.5},
    "outer 1.2": {**PLAIN, "outer_learning_rate": 1.2},
    "outer 1.4": {**PLAIN, "outer_learning_rate": 1.4},
    "restored, outer 1.2": {"outer_learning_rate": 1.2},
    "Nesterov .8/.9": {**PLAIN, **MOMENTUM},
    "Nesterov .7/.5": {**PLAIN, "outer": "nesterov", "outer_learning_rate": 0.7, "outer_momentum": 0.5},
    "Nesterov 1/.3": {**PLAIN, "outer": "nesterov", "outer_learning_rate": 1.0, "outer_momentum": 0.3},
    "restored, Nesterov .7/.3": {"outer": "nesterov", "outer_learning_rate": 0.7, "outer_momentum": 0.3},
    "2 steps": {"local_steps": 2},
    "3 steps": {"local_steps": 3},
    "8 steps": {"local_steps": 8},
    "ramp 600": {"ramp_steps": 600},
    "no ramp": {"ramp_steps": 0},
    "8 to 2 steps": {"ramp_from": 8, "local_steps": 2, "ramp_steps": 600},
    "mixing .5": {"mixing": 0.5},
    "mixing .75": {"mixing": 0.75},
    "8 shards": {"shard_elements": 4608},
    "8 shards, all at once": {"shard_elements": 4608, "streaming": False},
    "mean": {"aggregation": "mean"},
    "no cap": {"norm_cap": 0.0},
    "no ramp, 10 steps, Nesterov .8/.9": {"ramp_steps": 0, "local_steps": 10, **PLAIN, **MOMENTUM},
    "no ramp, 30 steps, Nesterov .8/.9": {"ramp_steps": 0, "local_steps": 30, **PLAIN, **MOMENTUM},
    "no ramp, 30 steps": {"ramp_steps": 0, "local_steps": 30},
}
LATE: dict[str, dict[str, Any]] = {
    "now": {},
    "plain": PLAIN,
    "half restored": {"restore_length": 0.5},
    "mixing .5": {"mixing": 0.5},
    "mixing .75": {"mixing": 0.75},
    "plain, mixing .5": {**PLAIN, "mixing": 0.5},
    "outer .8": {"outer_learning_rate": 0.8},
    "plain, outer .8": {**PLAIN, "outer_learning_rate": 0.8},
    "plain, Nesterov .5/.5": {**PLAIN, "outer": "nesterov", "outer_learning_rate": 0.5, "outer_momentum": 0.5},
    "plain, 10 steps": {**PLAIN, "local_steps": 10, "ramp_steps": 0},
    "10 steps": {"local_steps": 10},
    "10 steps, mixing .75": {"local_steps": 10, "mixing": 0.75},
    "2 steps": {"local_steps": 2},
    "8 shards": {"shard_elements": 4608},
    "8 shards, 10 steps": {"shard_elements": 4608, "local_steps": 10},
}
_SPARSE = {
    "local_steps": 5, "ramp_steps": 0, "feedback_decay": 0.95, "push_codec": "topk512-2bit", "update_codec": "topk1024-4bit",
    "push_codecs": (), "update_codecs": (), **PLAIN,
}  # fmt: skip
SPARSE: dict[str, dict[str, Any]] = {
    "5 steps": _SPARSE,
    "5 steps, restored": {**_SPARSE, "restore_length": 1.0},
    "5 steps, ramp 200": {**_SPARSE, "ramp_steps": 200},
    "5 steps, Nesterov .7/.3": {**_SPARSE, "outer": "nesterov", "outer_learning_rate": 0.7, "outer_momentum": 0.3},
    "8 steps, gauss2 both ways": {
        **_SPARSE,
        "local_steps": 8,
        "push_codec": "gauss2",
        "update_codec": "gauss2",
        "feedback_decay": 1.0,
    },
    "10 steps, top-1024 up, int3 down": {
        **_SPARSE, "local_steps": 10, "push_codec": "topk1024-2bit", "update_codec": "int3",
    },
    "15 steps, int4 up, gauss3 down": {**_SPARSE, "local_steps": 15, "push_codec": "int4", "update_codec": "gauss3"},
    "15 steps, top-512 up, int4 down": {**_SPARSE, "local_steps": 15, "update_codec": "int4"},
    "15 steps, int4 up, gauss3 down, Nesterov .8/.9": {
        **_SPARSE, "local_steps": 15, "push_codec": "int4", "update_codec": "gauss3", **MOMENTUM,
    },
    "30 steps, int8 up, int4 down, Nesterov .8/.9": {
        **_SPARSE, "local_steps": 30, "push_codec": "int8", "update_codec": "int4", **MOMENTUM,
    },
    "30 steps, int8 up, int4 down": {**_SPARSE, "local_steps": 30, "push_codec": "int8", "update_codec": "int4"},
    "5 steps, fp32": {**_SPARSE, "push_codec": "fp32", "update_codec": "fp32"},
}  # fmt: skip


def run_of(setting: str, optimizer: str, members: int, lr: float, seed: int, changes: Any = None, **more: Any) -> Run:
    made = {
        "task": "text", "optimizer": optimizer, "members": members, "setting": setting, "lr": lr, "seed": seed,
        "steps": 600, "late": 1, "changes": changes or {},
    } | more  # fmt: skip
    if setting in ("sync", "alone"):
        made |= {"late": 0, "changes": {}}
    return made


def same_optimizer(seed: int, task: str = "text", members: tuple[int, ...] = (2, 4, 8)) -> Iterator[Run]:
    for n in members:
        for optimizer, rates in RATES[task].items():
            for lr in rates:
                for setting in ("sync", "now"):
                    yield run_of(setting, optimizer, n, lr, seed, task=task)


def candidates(seed: int) -> Iterator[Run]:
    for changes in CANDIDATES.values():
        for optimizer, lr in (("adamw", 12e-3), ("muon", 0.03), ("adamw", 6e-3)):
            yield run_of("now", optimizer, 4, lr, seed, changes)


def late(seed: int, lates: tuple[int, ...]) -> Iterator[Run]:
    for steps in lates:
        for changes in LATE.values():
            for optimizer, lr in (("adamw", 12e-3), ("adamw", 6e-3), ("muon", 0.03)):
                yield run_of("now", optimizer, 2, lr, seed, changes, late=steps)


def sparse(seed: int, task: str, rates: tuple[float, ...], steps: int) -> Iterator[Run]:
    more = {"task": task, "steps": steps}
    for lr in rates:
        yield run_of("sync", "muon", 4, lr, seed, **more)
    for name, changes in SPARSE.items():
        for lr in rates[-1:] if "Nesterov" in name or name == "5 steps, fp32" else rates:
            yield run_of("fibre", "muon", 4, lr, seed, changes, **more, late=0)


def ends(seed: int) -> Iterator[Run]:
    """A rate that does not fall: what an average of the common model is worth."""
    for optimizer, lr in (("adamw", 6e-3), ("muon", 0.02), ("sgd", 0.3)):
        for setting in ("sync", "now"):
            for n in (2, 4):
                yield run_of(setting, optimizer, n, lr, seed, schedule="constant")


def unlike(seed: int) -> Iterator[Run]:
    """Members of unequal speed, and of unequal data."""
    for optimizer, lr in (("adamw", 12e-3), ("muon", 0.03)):
        for changes in ({}, PLAIN, {"aggregation": "mean"}, {"weight_cap": 8.0}, {"aggregation": "mean", **PLAIN}):
            yield run_of("now", optimizer, 4, lr, seed, changes, periods=[1, 2, 4, 8])
            for task in ("topics", "halves"):
                yield run_of("now", optimizer, 4, lr, seed, changes, task=task)
        yield run_of("sync", optimizer, 4, lr, seed, periods=[1, 2, 4, 8])
        for task in ("topics", "halves"):
            yield run_of("sync", optimizer, 4, lr, seed, task=task)


GROUPS = {
    "same": same_optimizer,
    "late": lambda seed: late(seed, (6,)),
    "candidates": candidates,
    "sparse": lambda seed: sparse(seed, "reference", (0.012, 0.02), 1000),
    "table": lambda seed: same_optimizer(seed, "table"),
    "ends": ends,
    "unlike": unlike,
    "late-more": lambda seed: late(seed, (11,)),
    "large": lambda seed: sparse(seed, "reference32", (0.02,), 500),
}
ORDER = (
    ("same", 0), ("late", 0), ("candidates", 0), ("ends", 0), ("table", 0), ("sparse", 0), ("unlike", 0), ("candidates", 1),
    ("same", 1), ("late", 1), ("table", 1), ("unlike", 1), ("same", 2), ("ends", 1), ("sparse", 1), ("late-more", 0),
    ("candidates", 2), ("large", 0),
)  # fmt: skip


def planned(groups: Iterable[str], seeds: Iterable[int]) -> Iterator[tuple[str, Run]]:
    seen = set()
    for group, seed in ORDER:
        if group in groups and seed in seeds:
            for run in GROUPS[group](seed):
                if key(run) not in seen:
                    seen.add(key(run))
                    yield group, run


def key(run: Run) -> str:
    return json.dumps(run, sort_keys=True)


def cost(run: Run) -> float:
    """Roughly, in steps of a member."""
    members = sum(1 / period for period in run.get("periods") or [1] * run["members"])
    size = {"reference": 2.5, "reference32": 20.0, "table": 0.3}.get(run["task"], 1.0)
    return run["steps"] * members * size * (1.4 if run["optimizer"] == "muon" else 1.0)


def work(job: tuple[str, Run, float]) -> tuple[str, Run, dict[str, Any]] | None:
    """One run; None: it would be begun too late."""
    group, run, end = job
    if time.time() >= end:
        return None
    try:
        return group, run, train(run)
    except Exception as failed:
        return group, run, {"loss": math.nan, "failed": f"{type(failed).__name__}: {failed}"[:300]}


def name_of(run: Run) -> str:
    """Its changes by the name that they have here."""
    for names in (CANDIDATES, LATE, SPARSE):
        for name, changes in names.items():
            if json.loads(json.dumps(changes)) == json.loads(json.dumps(run["changes"])):
                return "" if name == "now" else name
    return json.dumps(run["changes"])


def summary(done: list[tuple[str, Run, dict[str, Any]]]) -> str:
    """The tables: of each setting the losses, and how far above the best synchronous run of that optimizer on the same seeds."""
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for group, run, made in done:
        same = json.dumps(
            {k: v for k, v in run.items() if k in ("task", "members", "steps", "periods", "schedule")}, sort_keys=True
        )
        row = (group, same, run["optimizer"], run["setting"], name_of(run), run["late"], run["lr"])
        rows.setdefault(row, {})[run["seed"]] = made
    lines = [
        f"Averages of the common model: {', '.join(AVERAGES)}. Agreement: first and last third. Bytes a token: pushed, updates."
    ]
    for group in dict.fromkeys(row[0] for row in rows):
        lines += [
            f"\n**{group}**\n",
            "| of | optimizer | setting | late | rate | loss | to sync | of each seed | averages | agreement | bytes |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
        for row, made in rows.items():
            if row[0] != group:
                continue
            _, same, optimizer, setting, name, late_, lr = row
            losses = {seed: one["loss"] for seed, one in made.items()}
            best = min(
                (
                    statistics.fmean(other[seed]["loss"] for seed in losses)
                    for (_, same2, optimizer2, setting2, *_), other in rows.items()
                    if (same2, optimizer2, setting2) == (same, optimizer, "sync") and losses.keys() <= other.keys()
                ),
                default=math.nan,
            )
            mean, first = statistics.fmean(losses.values()), next(iter(made.values()))
            of = ", ".join(f"{k} {v}" for k, v in json.loads(same).items())
            emas = [statistics.fmean(one.get(name, math.nan) for one in made.values()) for name in AVERAGES]
            cells = [
                of,
                optimizer,
                f"{setting} {name}".strip(),
                late_,
                f"{lr:g}",
                f"{mean:.4f}",
                f"{100 * (mean / best - 1):+.1f} %",
            ]
            cells += [", ".join(f"{losses[seed]:.4f}" for seed in sorted(losses)), ", ".join(f"{x:.4f}" for x in emas if x == x)]
            cells += [", ".join(map(str, first.get("agreement", []))), ", ".join(map(str, first.get("bytes", [])))]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it ends, with what there is")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run, in place of the usual number: to try whether all of them work")
    parser.add_argument("--list", action="store_true", help="what would be run, and how much of it there is")
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder of what is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    end = time.time() + 60 * args.minutes
    todo = list(planned(args.groups, args.seeds))
    if args.steps:
        todo = [(group, run | {"steps": args.steps}) for group, run in todo]
    if args.list:
        for group, seed in ORDER:
            mine = [run for name, run in todo if (name, run["seed"]) == (group, seed)]
            print(f"{group:<12} seed {seed}: {len(mine):4d} runs, {sum(map(cost, mine)) / 1000:7.0f} thousand steps")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "runs.jsonl"
    done = (
        [(line["group"], line["run"], line["made"]) for line in map(json.loads, kept.read_text().splitlines())]
        if kept.exists()
        else []
    )
    have = {key(run) for _, run, _ in done}
    jobs = [(group, run, end) for group, run in todo if key(run) not in have]
    told = time.time()
    for text in (stdlib, tales):  # before the processes part, so that they share it
        text()
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool, open(kept, "a") as lines:
        results = pool.imap_unordered(work, jobs)
        for _ in jobs:
            try:
                result = results.next(timeout=max(0.1, end - time.time()))
            except multiprocessing.TimeoutError:
                break
            if result is None:
                break
            group, run, made = result
            done.append(result)
            lines.write(json.dumps({"group": group, "run": run, "made": made}) + "\n")
            lines.flush()
            if time.time() - told > 5:
                told = time.time()
                (args.out / "sweep.md").write_text(summary(done))
                print(
                    f"{len(done)} of {len(todo)} runs, {group} seed {run['seed']}, {end - told:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
        pool.terminate()
    (args.out / "sweep.md").write_text(summary(done))
    print(f"{len(done)} of {len(todo)} runs are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
