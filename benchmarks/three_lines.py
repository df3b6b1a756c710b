"""What a swarm learns by the three lines of the README, beside one process that has the batches of all.

    python benchmarks/three_lines.py --optimizers adamw --members 2 --seeds 0 1 2
    python benchmarks/three_lines.py --optimizers adamw --members 2 --late 1 6 11 --rates 0.012
    python benchmarks/three_lines.py --optimizers muon --members 4 --settings sync now --periods 1 2 4 8

A transformer of some 35,000 parameters on the source of Python's standard library, eight windows of 64 bytes a member and step,
warm-up and a cosine to a tenth, for several rates. "sync": one process with the joint batch. "alone": one member on its part of
the text, without the others. "now": a run of which nothing is said. "before": what such a run was until restore_length came.

The swarm is in lockstep in one process, without a network, and an answer comes `--late` steps after its push: see
benchmarks/_lockstep.py. Every finished run is kept in the JSON, and not repeated. Many runs at a time: benchmarks/sweep.py.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _lockstep import ALONE, OPTIMIZERS, train
from _tasks import TASKS

RATES = {"adamw": (3e-3, 6e-3, 12e-3), "muon": (0.01, 0.02, 0.04), "sgd": (0.1, 0.3, 1.0), "adafactor": (0.01, 0.03, 0.1)}

SCHEDULES = ("cosine", "constant", "anneal")
AVERAGE = "last 1/16"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    parser.add_argument("--members", nargs="+", type=int, default=[2])
    parser.add_argument("--settings", nargs="+", default=["sync", "alone", "before", "now"])
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates to sweep, in place of the usual ones")
    parser.add_argument("--late", nargs="+", type=int, default=[1], help="steps after which an answer comes")
    parser.add_argument("--changes", type=json.loads, default={}, help="fields of RoundSpec that differ, as JSON")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="text",
        help="topics: the last member has another text than the others; halves: the last two",
    )
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="how the learning rate falls")
    parser.add_argument("--periods", nargs="+", type=int, help="for each member, how many steps of the fastest it takes for one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("three_lines.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    runs = json.loads(args.out.read_text()) if args.out.exists() else {}
    print("| optimizer | members | setting | late | rate | loss | of each seed | agreement, first and last third | its average |")
    print("|---|---|---|---|---|---|---|---|---|")
    for optimizer, n_members, setting in itertools.product(args.optimizers, args.members, args.settings):
        lates = [0] if setting in ALONE else args.late
        for late, lr in itertools.product(lates, args.rates or RATES[optimizer]):
            made = []
            for seed in args.seeds:
                run = {
                    "optimizer": optimizer, "members": n_members, "setting": setting, "lr": lr, "seed": seed,
                    "steps": args.steps, "late": late, "changes": {} if setting in ALONE else args.changes,
                }  # fmt: skip
                unusual = {"task": args.task, "schedule": args.schedule, "periods": args.periods}
                run |= {name: value for name, value in unusual.items() if value != parser.get_default(name)}
                name = json.dumps(run, sort_keys=True)
                if name not in runs:
                    runs[name] = train(run)
                    args.out.write_text(json.dumps(runs, indent=0))
                made.append(runs[name])
            losses = [one["loss"] for one in made]
            cells = [optimizer, n_members, setting, late, f"{lr:g}", f"{statistics.fmean(losses):.4f}"]
            averages = [one[AVERAGE] for one in made if AVERAGE in one]
            cells += [", ".join(f"{loss:.4f}" for loss in losses), ", ".join(map(str, made[-1].get("agreement", [])))]
            cells += [f"{statistics.fmean(averages):.4f}" if averages else ""]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
