"""How well a swarm learns, and for how many bytes: several methods on one text, over the library's own codecs and aggregation.

    python benchmarks/convergence.py --methods synchronous muon-synchronous muon-top512 --seeds 0 1 2

Four workers train on disjoint quarters of the standard library's text, as processes would, but in one process and in lockstep.
Each push and update is made by the functions that members and owners of a run use: codec (small tensors dense), error feedback,
weighted mean with capped norms, outer optimizer, and the owner's own compression.
Bytes are the lengths of the encoded bodies: a push counts for one worker, an update once for each that receives it; what the
messages around them add is in benchmarks/averaging.py. Every finished run is kept in the JSON, and not repeated.
"""

# Shape suffixes: B = batch, T = time (tokens).

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import torch

from legion_p2p.core.plan import plan_for
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import LocalChange, combine, pack
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.outer import OuterState
from legion_p2p.train.batches import validation_batches
from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.gpt import GPT
from legion_p2p.train.muon import MuonAdamW
from legion_p2p.train.onebit import OneBitAdam
from legion_p2p.train.parameters import param_specs

N_WORKERS = 4
WARM_UP_STEPS = 50
FLOOR = 0.1
CLIP = 1.0
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
CURVE_POINTS = 20
REFERENCE = "synchronous"


@dataclass(frozen=True)
class Method:
    """How workers train and exchange. The record says where the rates come from."""

    lr: float
    inner: str = "adamw"
    local_steps: int = 0
    """0: no local steps, but one model on the batches of all, as data-parallel training has it; 4 bytes a parameter each way."""
    push: str = "fp32"
    update: str = "fp32"
    decay: float = 1.0
    """Of the workers' error feedback."""
    outer: str = "average"
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    ramp_steps: int = 0
    """For so many steps at first, average in fp32 after every fifth."""


METHODS = {
    "synchronous": Method(3e-3),
    "local-sgd": Method(3e-3, local_steps=50, ramp_steps=200),
    "diloco": Method(3e-3, local_steps=50, ramp_steps=200, outer="nesterov", outer_lr=0.7, outer_momentum=0.5),
    "adamw-top128": Method(9e-3, local_steps=5, push="topk128-2bit", update="topk512-2bit"),
    "onebit-adam": Method(3e-3, "onebit", 1, "sign", "sign"),
    "muon-synchronous": Method(12e-3, "muon"),
    "muon-top512": Method(20e-3, "muon", 5, "topk512-2bit", "topk1024-4bit", 0.95),
    "muon-top512-lean": Method(20e-3, "muon", 5, "topk512-2bit", "topk512-2bit", 0.95),
    "muon-top128": Method(20e-3, "muon", 5, "topk128-2bit", "topk512-2bit", 0.95),
}


class Worker:
    """A model, its optimizer, its quarter of the text, and what its compression left over of each shard."""

    def __init__(self, method, text, batch, seed, rank, n_shards, n_workers=N_WORKERS):
        self.model = GPT.from_preset("xxs", torch.Generator().manual_seed(seed))
        self.view = FlatView(self.model.named_parameters())
        if method.inner == "muon":
            self.optimizer = MuonAdamW.of(self.model, method.lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        elif method.inner == "onebit":
            self.optimizer = OneBitAdam(
                self.model.parameters(), method.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, least_warmup=2 * WARM_UP_STEPS
            )
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), method.lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        self.residuals = [None] * n_shards
        self.sources = [Windows(text, batch, seed, rank, n_workers)]

    def step(self, lr):
        x_BT, y_BT = (torch.cat(parts) for parts in zip(*(source.draw() for source in self.sources), strict=True))
        _, loss = self.model(x_BT, y_BT)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return float(loss.detach())


class Windows:
    """Random windows out of one worker's part of the text."""

    def __init__(self, text, batch, seed, rank, n_workers=N_WORKERS):
        share = len(text) // n_workers
        self.part = text[rank * share : (rank + 1) * share]
        self.batch = batch
        self.random = np.random.Generator(np.random.PCG64([seed, rank]))

    def draw(self):
        context = 64
        starts = self.random.integers(0, len(self.part) - context - 1, self.batch)
        windows = torch.from_numpy(self.part[starts[:, None] + np.arange(context + 1)].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


class Swarm:
    """The reference and its owners; `exchange` is one round, by the very functions that members and owners use."""

    def __init__(self, method, workers):
        self.workers = workers
        self.reference = workers[0].view.snapshot()
        self.rounds = RoundSpec(
            feedback_decay=method.decay,
            outer=method.outer,
            outer_learning_rate=method.outer_lr,
            outer_momentum=method.outer_momentum,
            push_codec=method.push,
            update_codec=method.update,
        )
        self.spec = RunSpec("convergence", "", param_specs(workers[0].view), self.rounds)
        self.plan = self.spec.plan()
        self.outer = [OuterState() for _ in range(self.plan.n_shards)]
        self.residuals = [None] * self.plan.n_shards
        self.version = 0
        self.pushed_bytes = 0.0  # by one worker, on average
        self.update_bytes = 0  # to one worker

    def exchange(self, dense):
        """`dense`: all of it in fp32, and plainly averaged."""
        rounds = msgspec.structs.replace(self.rounds, outer="average", outer_learning_rate=1.0) if dense else self.rounds
        for shard in range(self.plan.n_shards):
            start, end = self.plan.bounds(shard)
            push, update = (
                shard_codec(self.spec, shard, "fp32" if dense else name) for name in (rounds.push_codec, rounds.update_codec)
            )
            base, values = self.reference[start:end].clone(), {}
            for rank, worker in enumerate(self.workers):
                change = LocalChange(shard, self.version, base, worker.view.read_slice(start, end), 1, 1)
                payload, worker.residuals[shard] = pack(change, worker.residuals[shard], push, rounds.feedback_decay)
                values[str(rank)] = push.decode(payload, end - start)
                self.pushed_bytes += len(payload) / len(self.workers)
            pushes = tuple(Contribution(peer, self.version, self.version, 1, 0.0) for peer in values)
            closed = Closed(self.version, pushes, len(pushes), ())
            made = combine(base, self.residuals[shard], self.outer[shard], closed, values, rounds, update)
            self.residuals[shard], self.outer[shard] = made.owner_residual, made.outer
            self.update_bytes += len(made.payload)
            self.reference[start:end] = made.reference
            for worker in self.workers:
                worker.view.assign_slice(start, made.reference)
        self.version += 1


def rate(step, n_steps):
    """Of the learning rate: warm-up, then a cosine to a tenth."""
    warm_up = min(WARM_UP_STEPS, n_steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


@torch.no_grad()
def evaluate(model, text):
    total = n = 0
    for x_BT, y_BT in validation_batches(text, 64):
        total += float(model(x_BT, y_BT)[1]) * len(x_BT)
        n += len(x_BT)
    return total / n


def train(method, texts, n_steps, batch, seed):
    """One run: validation loss of the common model at the end and on the way, and bytes for each trained token."""
    training, validation = texts
    n_workers = N_WORKERS if method.local_steps else 1
    plan = plan_for(252_384)
    workers = [Worker(method, training, batch, seed, rank, plan.n_shards) for rank in range(n_workers)]
    if not method.local_steps:
        workers[0].sources = [Windows(training, batch, seed, rank) for rank in range(N_WORKERS)]
    swarm = Swarm(method, workers)
    curve, pushed_at = [], 0
    began = time.process_time()
    for step in range(n_steps):
        lr = method.lr * rate(step, n_steps)
        losses = [worker.step(lr) for worker in workers]
        if not all(map(math.isfinite, losses)):
            break
        warming_up = any(getattr(worker.optimizer, "warming_up", False) for worker in workers)
        ramp = step < method.ramp_steps or warming_up
        local_steps = min(5, method.local_steps) if ramp else method.local_steps
        if local_steps and (step + 1 - pushed_at >= local_steps or step + 1 == n_steps):
            swarm.exchange(dense=ramp)
            pushed_at = step + 1
        if pushed_at in (0, step + 1) and len(curve) < CURVE_POINTS * (step + 1) // n_steps:
            curve.append((step + 1, evaluate(workers[0].model, validation)))
    tokens = n_steps * batch * 64
    dense_bytes = 4 * len(swarm.reference) * n_steps
    return {
        "validation": evaluate(workers[0].model, validation),
        "push_bytes_per_token": (swarm.pushed_bytes if method.local_steps else dense_bytes) / tokens,
        "update_bytes_per_token": (swarm.update_bytes if method.local_steps else dense_bytes) / tokens,
        "curve": curve,
        "cpu_s": round(time.process_time() - began, 1),
    }


def key(name, args, seed):
    return f"{name} {json.dumps(asdict(args.of[name]), sort_keys=True)} steps={args.steps} batch={args.batch} seed={seed}"


def summarize(runs, args):
    """One row for each method: of the seeds asked for, those that have been run."""
    rows = []
    for name in args.methods:
        mine = {seed: runs[key(name, args, seed)] for seed in args.seeds if key(name, args, seed) in runs}
        if not mine:
            continue
        losses = {seed: run["validation"] for seed, run in mine.items()}
        first = next(iter(mine.values()))
        rows.append(
            {
                "method": name,
                "losses": losses,
                "validation": statistics.fmean(losses.values()),
                "spread": max(losses.values()) - min(losses.values()),
                "push": first["push_bytes_per_token"],
                "update": first["update_bytes_per_token"],
            }
        )
    return rows


def table(rows, args):
    dense = 4 * 252_384 / (args.batch * 64)
    losses = {row["method"]: row["losses"] for row in rows}
    adamw, muon = losses.get(REFERENCE, {}), losses.get("muon-" + REFERENCE, {})
    lines = [
        "| method | runs | validation | spread | to AdamW | to Muon | pushed bytes/token | less | with updates | less |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        both = row["push"] + row["update"]
        lines.append(
            f"| {row['method']} | {len(row['losses'])} | {row['validation']:.4f} | {row['spread']:.4f} "
            f"| {percent(row['losses'], adamw)} | {percent(row['losses'], muon)} "
            f"| {row['push']:.4g} | {dense / row['push']:.3g}x | {both:.4g} | {2 * dense / both:.3g}x |"
        )
    return "\n".join(lines)


def percent(losses, reference):
    """How far above, over the seeds that both have."""
    common = losses.keys() & reference.keys()
    if not common:
        return ""
    return f"{100 * (sum(losses[seed] for seed in common) / sum(reference[seed] for seed in common) - 1):+.1f} %"


def draw(runs, args, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), dpi=140)
    for row in summarize(runs, args):
        curve = next(runs[k] for seed in args.seeds if (k := key(row["method"], args, seed)) in runs)["curve"]
        (line,) = left.plot(*zip(*curve, strict=True), label=row["method"])
        right.plot(row["push"] + row["update"], row["validation"], "o", color=line.get_color())
        right.annotate(
            row["method"], (row["push"] + row["update"], row["validation"]), (5, 4), textcoords="offset points", fontsize=7
        )
    left.set(xlabel="steps", ylabel="validation loss (nats per byte)", ylim=(None, 3))
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="bytes per token, push and update", ylabel="validation loss at the end", xscale="log")
    for ax in (left, right):
        ax.grid(color="#e6e6e6")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


RECORD = """# Convergence: what a swarm learns, and for how many bytes

```console
$ {command}
```

{machine}.
GPT of 252,384 parameters on the Python standard library's source, {workers} workers on disjoint quarters of it,
{batch} windows of 64 bytes per worker and step, {steps} steps. Validation loss in nats per byte, the mean over seeds {seeds}
(the first of them, where there are fewer runs); spread is between the best and the worst. To AdamW, to Muon: how far the loss is
above that of synchronous training with it, for the same seeds.
Bytes are those of encoded bodies, per token that a worker trains: pushed by one worker, and with the updates that it receives;
less than fp32 each step, one way and both ways.

{table}

![Loss over steps, and at the end over bytes]({picture})

What it says: the inner optimizer decides more than anything that is done about bytes. Muon inside, with sparse pushes every five
steps, ends far below synchronous AdamW, and some per cent above synchronous Muon. Of that gap most comes from local steps on
small batches, the rest from compressing the update; what pushes leave out costs least. Sparse messages with feedback want nearly
twice the synchronous rate with Muon, and three times with AdamW. What was tried and lost is in docs/LOG.md.
"""
SETTINGS = """
Settings. Rates are the best of a sweep with seed 0, in which sparse methods had the update sent as it is; local SGD and DiLoCo
were not swept and have that of synchronous AdamW.

| method | {columns} |
|---|{bars}
"""


def record(rows, args):
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    text = RECORD.format(
        command=args.command,
        machine=f"{datetime.date.today().isoformat()}, {versions}, one thread",
        workers=N_WORKERS,
        batch=args.batch,
        steps=args.steps,
        seeds=", ".join(map(str, args.seeds)),
        table=table(rows, args),
        picture=args.out.with_suffix(".png").name,
    )
    fields = list(asdict(METHODS[REFERENCE]))
    text += SETTINGS.format(columns=" | ".join(field.replace("_", " ") for field in fields), bars="---|" * len(fields))
    for row in rows:
        values = asdict(args.of[row["method"]])
        text += f"| {row['method']} | " + " | ".join(str(values[field]) for field in fields) + " |\n"
    args.out.with_suffix(".md").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4, help="windows per worker and step")
    parser.add_argument("--lr", type=float, help="another rate for all of the methods, to sweep it")
    parser.add_argument("--out", type=Path, default=Path("convergence"), help="written: OUT.json, .png, and .md")
    args = parser.parse_args()
    args.of = {name: replace(method, lr=args.lr or method.lr) for name, method in METHODS.items()}
    args.command = " ".join(["python", "benchmarks/convergence.py", *sys.argv[1:]])
    torch.set_num_threads(1)

    texts = tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())
    kept = args.out.with_suffix(".json")
    runs = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for name in args.methods:
            if key(name, args, seed) in runs:
                continue
            run = train(args.of[name], texts, args.steps, args.batch, seed)
            runs[key(name, args, seed)] = run
            kept.write_text(json.dumps(runs))
            print(f"{name} seed {seed}: {run['validation']:.4f}, {run['cpu_s']} s", file=sys.stderr, flush=True)
    rows = summarize(runs, args)
    record(rows, args)
    draw(runs, args, args.out.with_suffix(".png"))
    print(table(rows, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
