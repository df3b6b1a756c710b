"""How well members learn while some of them lie: accuracy of 25 peers on digits, and the loss of 8 peers on the reference work.

    python benchmarks/hostile.py --jobs 14 --minutes 7
    python benchmarks/hostile.py --parts digits --attacks flip IPM --rules nearest-neighbours --iterations 100 --jobs 1

digits: the protocol of Karimireddy, He and Jaggi (2006.09365): 25 peers of which 5 lie, each of the honest has one digit or two,
600 rounds of one step with batches of 32, rate 0.01, momentum 0.9 at the peers. A small convolutional network (26,826 parameters)
on digits of 28 x 28 that are drawn here, moved, turned and blurred. Accuracy on others, in per cent.
work: the GPT and the text of benchmarks/convergence.py, 8 peers of which 1 or 2 lie, 5 local steps. By how much the loss is above
that of the same honest peers alone; how much liars weigh; which honest peers were taken for liars.

Each push and update is made by the functions that members and owners use, with sparse codecs and error feedback. Liars know what
all push (legion_p2p/sim/attackers.py). "+ trend" is with screening over rounds. "+ bounded" is with `same_network = "bounded"`,
where all liars are in one network. Cells run in processes with one thread each; at the end of the time what is not finished is
cut short, and marked with a star. Written: OUT.json and OUT.md.
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from convergence import METHODS, Windows, Worker, evaluate, rate
from torch import nn

from legion_p2p.core.plan import plan_for
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import NonFiniteError
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import combine
from legion_p2p.sim.attackers import ATTACKS, INFLATED, View
from legion_p2p.tensor.feedback import compress
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.outer import OuterState
from legion_p2p.tensor.robust.standing import NEWCOMER, NONE, weight_of
from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.parameters import param_specs

RULES = ("nearest-neighbours + trend", "nearest-neighbours", "mean", "centered-clip + trend")
DIGIT_ATTACKS = ("none", "flip", "labels", "mimic", "IPM", "ALIE", "random", "x100", "duplicates", "inflated")
WORK_ATTACKS = ("flip", "IPM", "against", "ALIE", "random", "mimic")
MEANT = {"none": "nobody lies", "flip": "sign flip", "labels": "label flip", "random": "noise", "inflated": "flip, tokens x1000"}
CODECS = {"digits": ("topk512-2bit", "topk1024-4bit"), "work": ("topk128-2bit", "topk512-2bit")}
"""Of pushes and of updates: the default of new runs, and that of METHOD."""
LR, MOMENTUM, BATCH = 0.01, 0.9, 32
N_TRAINING, N_TEST = 10_000, 2_000
LOCAL_STEPS = 5
METHOD = "adamw-top128"
FULL_S = 20.0  # before the end, to write what there is


@dataclass(frozen=True)
class Cell:
    """One run."""

    part: str
    rule: str
    attack: str
    seed: int
    n_honest: int
    n_hostile: int
    length: int
    """Rounds of digits, steps of the work."""
    unlike: bool = False
    """One honest peer has other text, one a quarter of the speed, one is a round late, and one joins halfway."""


@dataclass
class Push:
    """What one peer brings to a round."""

    change: torch.Tensor
    tokens: int = 1
    steps: int = 1
    version: int = 0


@dataclass
class Round:
    """The reference, its owner, and what is known of each peer."""

    view: FlatView
    rounds: RoundSpec
    attack: str
    version: int = 0
    residuals: dict = field(default_factory=dict)
    standings: dict = field(default_factory=dict)
    n_accused: int = 0
    n_judged: int = 0
    weights: list = field(default_factory=list)
    """Of all liars together, as a share, round by round."""
    watch: Callable | None = None
    """Told of the pushes to each shard before they are combined."""

    def __post_init__(self):
        self.reference = self.view.snapshot()
        self.spec = RunSpec("hostile", "", param_specs(self.view), self.rounds)
        self.plan = self.spec.plan()
        self.owned = [(None, OuterState()) for _ in range(self.plan.n_shards)]
        self.noise = torch.Generator().manual_seed(0)

    def exchange(self, honest, hostile):
        """Pushes by name; those of `hostile` are what they would be if they were honest."""
        shares = []
        for shard in range(self.plan.n_shards):
            start, end = self.plan.bounds(shard)
            push, update = (shard_codec(self.spec, shard, name) for name in (self.rounds.push_codec, self.rounds.update_codec))
            values = {name: self._sent(name, shard, one.change[start:end], push) for name, one in (honest | hostile).items()}
            self._lie(values, honest, hostile, push, end - start)
            if self.watch is not None:
                self.watch(self, shard, values)
            known = self.standings.setdefault(shard, {})
            lied = INFLATED if self.attack == "inflated" else 1
            pushes = tuple(
                Contribution(
                    name, self.version, one.version, one.tokens * (lied if name in hostile else 1), 0.0,
                    one.steps * (lied if name in hostile else 1), known.get(name),
                    int(name in hostile and self.rounds.same_network == "bounded"),
                )
                for name, one in sorted((honest | hostile).items())
            )  # fmt: skip
            closed = Closed(self.version, pushes, len(pushes), ())
            residual, outer = self.owned[shard]
            made = combine(self.reference[start:end].clone(), residual, outer, closed, values, self.rounds, update)
            self.owned[shard] = made.owner_residual, made.outer
            self.reference[start:end] = made.reference
            known.update(zip(made.used, made.standings, strict=False))
            if made.standings:
                of = {name: weight_of(known.get(name, NEWCOMER)) for name in values}
                shares.append(sum(of[name] for name in hostile) / max(sum(of.values()), 1e-9))
                self.n_accused += sum(known.get(name, NEWCOMER) <= NONE for name in honest)
                self.n_judged += len(honest)
        if shares:
            self.weights.append(sum(shares) / len(shares))
        self.version += 1

    def _sent(self, name, shard, change, codec):
        packed = compress(codec, self.residuals.get((name, shard)), change)
        self.residuals[name, shard] = packed.residual
        return codec.decode(packed.data, len(change))

    def _lie(self, values, honest, hostile, codec, numel):
        attack = {"inflated": "flip", "duplicates": "flip"}.get(self.attack, self.attack)
        if attack not in ATTACKS:
            return
        seen, own = tuple(values[name] for name in sorted(honest)), values[min(hostile)] if hostile else None
        for name in hostile:
            mine = own if self.attack == "duplicates" else values[name]
            value = torch.nan_to_num(ATTACKS[attack](View(mine, seen, self.noise)), nan=0.0).clamp(-1e30, 1e30)
            values[name] = codec.decode(codec.encode(value), numel)

    def found_in(self):
        """The round from which on liars weighed less than a hundredth; None: never."""
        found = None
        for n, weight in enumerate(self.weights, 1):
            found = (found or n) if weight < 0.01 else None
        return found


def round_spec(rule, part, **fields):
    name, *more = rule.split(" + ")
    push, update = CODECS[part]
    screening, networks = "trend" if "trend" in more else "none", "bounded" if "bounded" in more else "free"
    return RoundSpec(push_codec=push, update_codec=update, aggregation=name, screening=screening, same_network=networks, **fields)


# digits

GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


@functools.cache
def digits(seed):
    """Pictures (n, 1, 28, 28) and labels: for training, sorted by label, and for the test."""
    random = torch.Generator().manual_seed(1000 + seed)
    n = N_TRAINING + N_TEST
    rows = [[[float(c) for c in row] for row in glyph.split()] for glyph in GLYPHS]
    small = torch.tensor(rows).unsqueeze(1)
    glyphs = torch.nn.functional.pad(torch.nn.functional.interpolate(small, (20, 14), mode="bilinear"), (7, 7, 4, 4))
    labels = torch.arange(n) % 10

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=random)

    angle, shear = uniform(-0.35, 0.35), uniform(-0.3, 0.3)
    wide, high = uniform(0.8, 1.4), uniform(0.8, 1.3)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1], theta[:, 0, 2] = wide * angle.cos(), -angle.sin() + shear, uniform(-0.25, 0.25)
    theta[:, 1, 0], theta[:, 1, 1], theta[:, 1, 2] = angle.sin(), high * angle.cos(), uniform(-0.25, 0.25)
    grid = torch.nn.functional.affine_grid(theta, (n, 1, 28, 28), align_corners=False)
    drawn = torch.nn.functional.grid_sample(glyphs[labels], grid, align_corners=False)
    blurred = torch.nn.functional.avg_pool2d(drawn, 3, 1, 1)
    ink = uniform(0.6, 1.0)[:, None, None, None]
    pictures = ink * torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.5, drawn, blurred)
    pictures += 0.25 * torch.randn(n, 1, 28, 28, generator=random)
    pictures = (pictures - pictures.mean()) / pictures.std()
    order = torch.randperm(n, generator=random)
    training, test = order[:N_TRAINING], order[N_TRAINING:]
    training = training[torch.argsort(labels[training], stable=True)]
    return pictures[training], labels[training], pictures[test], labels[test]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def train_digits(cell, until):
    x, y, test_x, test_y = digits(cell.seed)
    model = network(cell.seed)
    view = FlatView(model.named_parameters())
    work = Round(view, round_spec(cell.rule, cell.part, shard_elements=1 << 15), cell.attack)
    names = [f"honest{i:02}" for i in range(cell.n_honest)] + [f"liar{i}" for i in range(cell.n_hostile)]
    liars = set(names[cell.n_honest :])
    random = {name: torch.Generator().manual_seed(1000 * cell.seed + i) for i, name in enumerate(names)}
    share = len(x) // cell.n_honest
    moved = {name: torch.zeros_like(work.reference) for name in names}
    n_done = 0
    while n_done < cell.length and time.time() < until:
        pushes = {}
        for i, name in enumerate(names):
            if name in liars and cell.attack in ("IPM", "ALIE", "random", "mimic"):
                pushes[name] = Push(torch.zeros_like(work.reference), BATCH, 1, work.version)
                continue
            at = torch.randint(share, (BATCH,), generator=random[name])
            at = torch.randint(len(x), (BATCH,), generator=random[name]) if name in liars else at + share * i
            wanted = 9 - y[at] if name in liars and cell.attack == "labels" else y[at]
            model.zero_grad()
            nn.functional.cross_entropy(model(x[at]), wanted).backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            moved[name] = MOMENTUM * moved[name] + gradient
            pushes[name] = Push(LR * moved[name], BATCH, 1, work.version)
        try:
            work.exchange({n: p for n, p in pushes.items() if n not in liars}, {n: p for n, p in pushes.items() if n in liars})
        except NonFiniteError:
            return {"accuracy": 10.0, "done": cell.length, "diverged": n_done}
        view.assign_slice(0, work.reference)
        n_done += 1
    with torch.no_grad():
        right = float((model(test_x).argmax(1) == test_y).float().mean())
    return {"accuracy": round(100 * right, 2), "done": n_done, **of_screening(work)}


# the reference work


@functools.cache
def texts():
    return tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())


def train_work(cell, until, watch=None):
    training, validation = texts()
    method = METHODS[METHOD]
    n = cell.n_honest + cell.n_hostile
    plan = plan_for(252_384)
    names = [f"honest{i}" for i in range(cell.n_honest)] + [f"liar{i}" for i in range(cell.n_hostile)]
    workers = {name: Worker(method, training, 4, cell.seed, rank, plan.n_shards, n_workers=n) for rank, name in enumerate(names)}
    unequal, slow, late, new = names[:4] if cell.unlike else (None,) * 4
    if unequal:
        workers[unequal].sources = [Windows(255 - training, 4, cell.seed, 0, n)]
    work = Round(workers[names[0]].view, round_spec(cell.rule, cell.part), cell.attack, watch=watch)
    kept, n_done = {}, 0
    while n_done < cell.length and time.time() < until:
        present = [name for name in names if name != new or n_done >= cell.length // 2]
        for _ in range(LOCAL_STEPS):
            lr = method.lr * rate(n_done, cell.length)
            for name in present:
                if name != slow or n_done % 4 == 0:
                    workers[name].step(lr)
            n_done += 1
        pushes = {}
        for name in present:
            change = work.reference - workers[name].view.snapshot()
            steps = max(1, LOCAL_STEPS // 4) if name == slow else LOCAL_STEPS
            pushes[name] = Push(change, 256 * steps, steps, work.version)
        if late:
            kept[late], pushes[late] = pushes[late], kept.get(late) or pushes[late]
        lying = {name: push for name, push in pushes.items() if name.startswith("liar")}
        try:
            work.exchange({name: push for name, push in pushes.items() if name not in lying}, lying)
        except NonFiniteError:
            return {"loss": None, "done": cell.length, "diverged": n_done}
        for name in names:
            workers[name].view.assign_slice(0, work.reference)
    loss = evaluate(workers[names[0]].model, validation)
    return {"loss": round(loss, 4) if math.isfinite(loss) else None, "done": n_done, **of_screening(work)}


def of_screening(work):
    if not work.weights:
        return {}
    return {
        "found_in": work.found_in(),
        "weight": round(work.weights[-1], 4),
        "accused": work.n_accused,
        "judged": work.n_judged,
    }


# all of them


def run_cell(job):
    cell, until = job
    torch.set_num_threads(1)
    began = time.process_time()
    result = (train_digits if cell.part == "digits" else train_work)(cell, until)
    return {**asdict(cell), **result, "cpu_s": round(time.process_time() - began, 1)}


def cells(args):
    """The most telling first."""
    found = []
    for seed in range(args.seeds):
        if "work" in args.parts:
            for rule in dict.fromkeys((*args.work_rules, *(() if args.short else ("mean",)))):
                found += [Cell("work", rule, "none", seed, 8 - n, 0, args.steps) for n in args.liars]
            if not args.short:
                found += [Cell("work", rule, "none", seed, 8, 0, args.steps, unlike=True) for rule in args.work_rules]
            found += [
                Cell("work", rule, attack, seed, 8 - liars, liars, args.steps)
                for rule in args.work_rules
                for attack in args.work_attacks
                for liars in args.liars
            ]
        if "digits" in args.parts:
            found += [
                Cell("digits", rule, attack, seed, 20, 5 if attack != "none" else 0, args.iterations)
                for rule in args.rules
                for attack in args.attacks
            ]
        if "work" in args.parts and not args.short:
            found += [
                Cell("work", "nearest-neighbours + trend", "flip", seed, 6, 2, args.steps, unlike=True),
                *(Cell("work", "nearest-neighbours", "none", seed, n, 0, args.steps) for n in (7, 6)),
                *(
                    Cell("work", "nearest-neighbours", attack, seed, 8 - liars, liars, args.steps)
                    for attack in args.work_attacks[:2]
                    for liars in (1, 2)
                ),
            ]
    return found


def shown(result, key, form):
    value = result.get(key)
    star = "*" if result["done"] < result["length"] else ""
    return ("inf" if value is None else form.format(value)) + star


def tables(results):
    lines = []
    of = [r for r in results if r["part"] == "digits"]
    if of:
        attacks = list(dict.fromkeys(r["attack"] for r in of))
        lines += ["## Digits: accuracy, %", "", "| rule | " + " | ".join(MEANT.get(a, a) for a in attacks) + " |"]
        lines += ["|---" * (len(attacks) + 1) + "|"]
        for rule in dict.fromkeys(r["rule"] for r in of):
            row = [[shown(r, "accuracy", "{:.1f}") for r in of if (r["rule"], r["attack"]) == (rule, a)] for a in attacks]
            lines.append(f"| {rule} | " + " | ".join(", ".join(cell) for cell in row) + " |")
        lines += ["", *accused(of), ""]
    of = [r for r in results if r["part"] == "work"]
    if of:
        alone = {(r["rule"], r["n_honest"], r["seed"]): r["loss"] for r in of if r["attack"] == "none" and not r["unlike"]}
        lines += [
            "## Reference work", "",
            "| rule | attack | honest | liars | seed | loss | the honest alone | above, % | above their mean, % "
            "| liars weigh < 1 % from round | weigh at the end |", "|---" * 11 + "|",
        ]  # fmt: skip
        for r in of:
            before = alone.get((r["rule"], r["n_honest"], r["seed"]))
            exact = alone.get(("mean", r["n_honest"], r["seed"]))
            name = MEANT.get(r["attack"], r["attack"]) + (", unlike peers" if r["unlike"] else "")
            lines.append(
                f"| {r['rule']} | {name} | {r['n_honest']} | {r['n_hostile']} | {r['seed']} | {shown(r, 'loss', '{:.4f}')} "
                f"| {'' if before is None else f'{before:.4f}'} "
                f"| {above(r['loss'], before)} | {above(r['loss'], exact)} | {liars(r, 'found_in')} | {liars(r, 'weight')} |"
            )
        lines += ["", *accused(of), ""]
    return "\n".join(lines)


def liars(result, key):
    value = result.get(key, "")
    return "" if not result["n_hostile"] else "never" if value is None else value


def above(loss, other):
    return "" if loss is None or other is None else f"{100 * (loss / other - 1):+.1f}"


def accused(results):
    lines = []
    for rule in dict.fromkeys(r["rule"] for r in results if r.get("judged")):
        of = [r for r in results if r["rule"] == rule]
        n, n_all = sum(r["accused"] for r in of), sum(r["judged"] for r in of)
        lines.append(f"{rule}: an honest peer weighed nothing in {n} of {n_all} rounds and shards ({100 * n / n_all:.3f} %).")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("digits", "work"), default=["digits", "work"])
    parser.add_argument("--rules", nargs="+", default=[*RULES])
    parser.add_argument("--attacks", nargs="+", default=[*DIGIT_ATTACKS])
    parser.add_argument("--work-attacks", nargs="+", default=[*WORK_ATTACKS])
    parser.add_argument("--work-rules", nargs="+", default=["nearest-neighbours + trend"])
    parser.add_argument("--liars", nargs="+", type=int, default=[1, 2], help="of the 8 peers of the reference work")
    parser.add_argument("--short", action="store_true", help="only `--work-rules`, and peers that are alike")
    parser.add_argument("--iterations", type=int, default=600, help="rounds of digits")
    parser.add_argument("--steps", type=int, default=500, help="of the reference work")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing goes on")
    parser.add_argument("--out", type=Path, default=Path("hostile"))
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes - min(FULL_S, 6 * args.minutes)
    jobs = [(cell, until) for cell in cells(args)]
    results = []
    told = {"python": platform.python_version(), "torch": torch.__version__, "options": {**vars(args), "out": str(args.out)}}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for result in pool.imap_unordered(run_cell, jobs):
            if result["done"]:
                results.append(result)
            args.out.with_suffix(".json").write_text(json.dumps({**told, "results": results}))
            print(f"{len(results)} of {len(jobs)}: {json.dumps(result)}", flush=True)
    ordered = {json.dumps(asdict(cell)): n for n, (cell, _) in enumerate(jobs)}
    fields = list(asdict(jobs[0][0]))
    results.sort(key=lambda r: ordered[json.dumps({name: r[name] for name in fields})])
    args.out.with_suffix(".md").write_text(tables(results) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
