"""GPT-2 124M on one GPU: four emulated members with local steps and sparse pushes, beside synchronous AdamW and Muon.

    python benchmarks/gpt2_device.py --minutes 8 --out FOLDER
    python benchmarks/gpt2_device.py --prepare --text TEXT --out FOLDER
    python benchmarks/gpt2_device.py --size tiny --device cpu --minutes 1 --steps 6 --text-mb 1 --out FOLDER

Each of four members trains a model of its own on a quarter of the text, 16 windows of 1,024 tokens a step: 65,536 tokens in all.
They are on one device and take turns. A round comes every `local_steps` steps, for all shards at once, and its answer at once.
Codecs, error feedback, rule, restored length and outer step are those of a run (benchmarks/_on_device.py says how they compute
here). "sync" is one model on the batches of all four. The text is what the machine has: benchmarks/_machine_text.py.

All runs have the same number of steps: as many, up to --steps, as let the first --fit of them end in time. What is known is
appended to FOLDER/gpt2.jsonl every few seconds, and FOLDER/gpt2.md has a table of it. The program ends by itself after --minutes.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _machine_text
import _on_device
import msgspec
import numpy as np
import torch

from legion_p2p.config import Rounds, Training
from legion_p2p.config.new_run import chosen_rounds
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.outer import OuterState, outer_step
from legion_p2p.train.compute import Compute
from legion_p2p.train.flops import flops_per_token, peak_flops
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.muon import MuonAdamW
from legion_p2p.train.parameters import param_specs

N_MEMBERS = 4
FLOOR, CLIP, WEIGHT_DECAY, BETAS = 0.1, 1.0, 0.1, (0.9, 0.95)
SIZES = {
    "gpt2": GPTConfig(n_layer=12, n_head=12, width=768, context=1024, vocab_size=50304, bias=True),
    "tiny": GPTConfig(n_layer=2, n_head=2, width=64, context=32, vocab_size=512, bias=True),
}
WINDOWS = {"gpt2": 16, "tiny": 4}  # of a member and step
N_VALIDATION = {"gpt2": 256, "tiny": 16}  # windows
SPARSE = {"push_codec": "topk512-2bit", "push_codecs": (), "update_codec": "topk1024-4bit", "update_codecs": ()}
PLAIN = {"restore_length": 0.0}
MULOCO = {**PLAIN, "outer": "nesterov", "outer_learning_rate": 0.8, "outer_momentum": 0.9}
AVERAGED = 16  # the average of the common model is over the last sixteenth of its versions
END_S = 12.0  # before the end in which nothing new is begun


@dataclass(frozen=True)
class Plan:
    """One run. `local_steps` 0: synchronous."""

    name: str
    optimizer: str
    lr: float
    local_steps: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    def rounds(self) -> RoundSpec:
        """What a run comes to of which nothing is said, but for its local steps, sparse codecs, and `changes`."""
        chosen = chosen_rounds(Rounds(), "auto")
        return msgspec.structs.replace(chosen, local_steps=self.local_steps, ramp_steps=0, **{**SPARSE, **self.changes})


MUON, ADAMW = 4e-3, 1e-3
PLANS = (
    Plan("muon-sync", "muon", MUON),
    Plan("muon-h30", "muon", MUON, 30),
    Plan("muon-h30-nesterov", "muon", MUON, 30, MULOCO),
    Plan("muon-h5", "muon", MUON, 5),
    Plan("adamw-sync", "adamw", ADAMW),
    Plan("muon-h30-plain", "muon", MUON, 30, PLAIN),
    Plan("muon-h5-nesterov", "muon", MUON, 5, MULOCO),
    Plan("adamw-h30-nesterov", "adamw", ADAMW, 30, MULOCO),
)


class Log:
    """Lines of JSON, each written at once; and the time that is left."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes
        self.runs: dict[str, dict[str, Any]] = {}

    def left_s(self) -> float:
        return self.end - time.monotonic()

    def say(self, **fields: Any) -> None:
        line = json.dumps({"at_s": round(time.monotonic() - self.began, 1), **fields})
        with open(self.folder / "gpt2.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)


class Bench:
    """One compiled model whose parameters lie in one flat tensor, into which each member's are copied when it is its turn."""

    def __init__(self, args: argparse.Namespace, tokens: dict[str, torch.Tensor]) -> None:
        self.device, self.size, self.tokens = args.device, args.size, tokens
        self.config = SIZES[args.size]
        self.model = GPT(self.config, torch.Generator().manual_seed(args.seed))
        self.start = FlatView(self.model.named_parameters()).snapshot().to(args.device)
        job = Training(compile=args.compile, precision="bf16" if args.device.startswith("cuda") else "fp32")
        self.compute = Compute(LanguageModel.of_gpt(self.model), args.device, job)
        self.flat = self.start.clone()
        at = 0
        for p in self.model.parameters():
            p.data = self.flat[at : at + p.numel()].view(p.shape)
            at += p.numel()
        self.seed = args.seed
        self.flops = flops_per_token(self.model, self.config.n_layer, self.config.width, self.config.context)
        self.peak = peak_flops(args.device, "bf16")

    def optimizer(self, plan: Plan) -> torch.optim.Optimizer:
        if plan.optimizer == "muon":
            return MuonAdamW.of(self.model, plan.lr, lr_factor=0.25, betas=BETAS, weight_decay=WEIGHT_DECAY)
        return torch.optim.AdamW(self.model.parameters(), plan.lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def generators(self) -> list[torch.Generator]:
        return [torch.Generator(self.device).manual_seed(1000 * self.seed + rank) for rank in range(N_MEMBERS)]

    def batch(self, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows out of a member's quarter."""
        text, T = self.tokens["train"], self.config.context
        share = len(text) // N_MEMBERS
        starts = torch.randint(
            rank * share, (rank + 1) * share - T - 1, (WINDOWS[self.size],), device=self.device, generator=generator
        )
        return self._windows(text, starts)

    def backward(self, rank: int, generator: torch.Generator, part: float) -> torch.Tensor:
        x, y = self.batch(rank, generator)
        with self.compute.precise():
            loss = self.model(x, y)[1]
        (loss * part).backward()
        return loss.detach()

    def step(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def evaluate(self, flat: torch.Tensor) -> float:
        """Of the model with these parameters, nats per token. What was in `self.flat` is lost."""
        self.flat.copy_(flat)
        text, n = self.tokens["validation"], N_VALIDATION[self.size]
        starts = torch.linspace(0, len(text) - self.config.context - 2, n, device=self.device).long()
        losses = []
        for some in starts.split(WINDOWS[self.size]):
            with self.compute.precise():  # with gradients, so that it is the compiled forward pass of training
                losses.append(self.model(*self._windows(text, some))[1].detach())
        return float(torch.stack(losses).mean())

    def _windows(self, text: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = text[starts[:, None] + torch.arange(self.config.context + 1, device=self.device)].long()
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Swarm:
    """What members and owners hold, all of it on the device."""

    def __init__(self, bench: Bench, plan: Plan) -> None:
        self.bench, self.rounds = bench, plan.rounds()
        spec = RunSpec("device", "", param_specs(FlatView(bench.model.named_parameters())), self.rounds)
        layout = spec.plan()
        self.bounds = [layout.bounds(shard) for shard in range(layout.n_shards)]
        self.codecs = [
            tuple(shard_codec(spec, shard, name) for name in (self.rounds.push_codec, self.rounds.update_codec))
            for shard in range(layout.n_shards)
        ]
        self.reference = bench.start.clone()
        self.average = bench.start.clone()
        self.own = [bench.start.clone() for _ in range(N_MEMBERS)]
        self.left = [torch.zeros_like(bench.start) for _ in range(N_MEMBERS)]
        self.owner_left = torch.zeros_like(bench.start)
        self.outer = [OuterState() for _ in self.bounds]
        self.agreements: list[float] = []
        self.bytes: list[tuple[int, int]] = []
        """Of one member's pushes and of the updates, in rounds in which they were counted."""
        self.n_rounds = 0

    def exchange(self, count: bool) -> None:
        """One round. `count`: encode what it sends as well, to know how long it is."""
        found, pushed, updated = [], 0, 0
        for shard, (a, b) in enumerate(self.bounds):
            push, update = self.codecs[shard]
            base, values = self.reference[a:b], []
            for rank, own in enumerate(self.own):
                wanted = self.left[rank][a:b] * self.rounds.feedback_decay + (base - own[a:b])
                values.append(_on_device.sent(push, wanted))
                self.left[rank][a:b] = wanted - values[-1]
                if count and rank == 0:
                    pushed += len(push.encode(wanted))
            mean, agreement = _on_device.aggregate(values, self.rounds.restore_length)
            step, self.outer[shard] = outer_step(
                self.rounds.outer,
                mean,
                self.outer[shard],
                lr=self.rounds.outer_learning_rate,
                momentum=self.rounds.outer_momentum,
            )
            wanted = self.owner_left[a:b] + step
            change = _on_device.sent(update, wanted)
            if count:
                updated += len(update.encode(wanted))
            self.owner_left[a:b] = wanted - change
            self.reference[a:b] = base - change
            if agreement is not None:
                found.append(agreement)
        for own in self.own:
            own.copy_(self.reference)
        self.n_rounds += 1
        self.average.lerp_(self.reference, min(1.0, AVERAGED / self.n_rounds))
        if found:
            self.agreements.append(statistics.fmean(found))
        if count:
            self.bytes.append((pushed, updated))


def rate(step: int, n_steps: int) -> float:
    """Factor on the learning rate: warm-up over a tenth, then a cosine to a tenth."""
    warm_up = max(1, n_steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


def train(bench: Bench, plan: Plan, n_steps: int, log: Log) -> bool:
    """One run, its lines in the log; False: the time was over before its end."""
    began, said, waited = time.monotonic(), 0.0, 0.0
    swarm = Swarm(bench, plan) if plan.local_steps else None
    bench.flat.copy_(bench.start)
    optimizers = [bench.optimizer(plan) for _ in range(N_MEMBERS if swarm else 1)]
    generators = bench.generators()
    own = log.runs[plan.name] = {"steps": 0, "of": n_steps, "curve": []}
    pushed_at, evaluated_at, flat = 0, 0, bench.flat
    losses: list[torch.Tensor] = []
    for step in range(n_steps):
        lr = plan.lr * rate(step, n_steps)
        for rank, generator in enumerate(generators):
            if swarm:
                flat.copy_(swarm.own[rank])
            losses.append(bench.backward(rank, generator, 1.0 if swarm else 1 / N_MEMBERS))
            if swarm:
                bench.step(optimizers[rank], lr)
                swarm.own[rank].copy_(flat)
        if not swarm:
            bench.step(optimizers[0], lr)
        done = step + 1
        last = done == n_steps or log.left_s() < 3
        if swarm and (done - pushed_at >= plan.local_steps or last):
            _wait(bench.device)
            at = time.monotonic()
            swarm.exchange(count=swarm.n_rounds in (0, 2, 8) or last)
            _wait(bench.device)
            waited += time.monotonic() - at
            pushed_at = done
        own["steps"] = done
        if (done - evaluated_at >= n_steps / 10 and (swarm is None or pushed_at == done)) or last:
            kept = None if swarm else flat.clone()
            loss = bench.evaluate(flat.clone() if swarm is None else swarm.reference)
            if kept is not None:
                flat.copy_(kept)
            evaluated_at = done
            own["curve"].append((done, round(loss, 4)))
            own["validation"] = round(loss, 4)
            if swarm and last:
                own["average"] = round(bench.evaluate(swarm.average), 4)
        if log.left_s() < 3 or last or time.monotonic() - said > 4:
            said = time.monotonic()
            trained = float(torch.stack(losses[-N_MEMBERS * 20 :]).mean())
            own |= {"loss": round(trained, 4), "took_s": round(said - began, 1), "exchange_s": round(waited, 1)}
            if swarm:
                own |= {
                    "rounds": swarm.n_rounds,
                    "bytes": swarm.bytes,
                    "agreement": [round(x, 3) for x in swarm.agreements[-200:]],
                }
            brief = {k: v for k, v in own.items() if last or k not in ("curve", "agreement", "bytes")}
            log.say(run=plan.name, lr=plan.lr, **brief)
            if not math.isfinite(trained):
                return True
        if last:
            write_table(log, bench)
            return done == n_steps
    return True


def write_table(log: Log, bench: Bench) -> None:
    dense = 4 * bench.flat.numel()
    tokens = N_MEMBERS * WINDOWS[bench.size] * bench.config.context
    sync = {plan.optimizer: log.runs.get(plan.name, {}).get("validation") for plan in PLANS if not plan.local_steps}
    lines = [
        "| run | rate | steps | validation | to sync | average | agreement: first, last | pushed a round | updates | less |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in PLANS:
        run = log.runs.get(plan.name)
        if run is None or "validation" not in run:
            continue
        cells = [plan.name, f"{plan.lr:g}", f"{run['steps']} of {run['of']}", f"{run['validation']:.4f}"]
        base = sync.get(plan.optimizer)
        cells.append(f"{100 * (run['validation'] / base - 1):+.1f} %" if base and plan.local_steps else "")
        cells.append(f"{run['average']:.4f}" if "average" in run else "")
        found = run.get("agreement") or []
        cells.append(f"{found[0]:.2f}, {found[-1]:.2f}" if found else "")
        if run.get("bytes"):
            pushed, updated = (statistics.fmean(part) for part in zip(*run["bytes"], strict=True))
            less = 2 * dense * run["steps"] / ((pushed + updated) * run["rounds"])
            cells += [f"{pushed / 1e6:.2f} MB", f"{updated / 1e6:.2f} MB", f"{less:.0f}x"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\n{tokens} tokens a step; fp32 each step, both ways, is {2 * dense / 1e6:.0f} MB.")
    (log.folder / "gpt2.md").write_text("\n".join(lines) + "\n")


def measured_step_s(bench: Bench, log: Log) -> float:
    """Seconds of one synchronous step, after compiling."""
    plan = PLANS[0]
    optimizer, generators = bench.optimizer(plan), bench.generators()
    began = time.monotonic()
    times = []
    for i in range(8):
        at = time.monotonic()
        for rank, generator in enumerate(generators):
            loss = bench.backward(rank, generator, 1 / N_MEMBERS)
        bench.step(optimizer, 0.0)
        _wait(bench.device)
        times.append(time.monotonic() - at)
        if i == 0:
            log.say(compiled_s=round(time.monotonic() - began, 1), first_loss=float(loss))
    step_s = statistics.median(times[2:])
    tokens = N_MEMBERS * WINDOWS[bench.size] * bench.config.context
    mfu = tokens / step_s * bench.flops / bench.peak if bench.peak else None
    memory = torch.cuda.max_memory_allocated() / 1e9 if bench.device.startswith("cuda") else None
    log.say(step_s=round(step_s, 4), tokens_per_s=round(tokens / step_s), mfu=mfu and round(mfu, 3), memory_gb=memory)
    return step_s


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it ends, with what there is")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=1000, help="most steps of a run")
    parser.add_argument("--fit", type=int, default=5, help="runs that are to end in time")
    parser.add_argument("--runs", nargs="+", choices=[plan.name for plan in PLANS], default=[plan.name for plan in PLANS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="folder in which another process makes the text ready, by --prepare")
    parser.add_argument("--prepare", action="store_true", help="make the text ready in --text, and nothing else")
    parser.add_argument("--text-mb", type=float, default=280.0, help="of the machine's text")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out, args.minutes)
    torch.set_float32_matmul_precision("high")
    folder = args.text or args.out / "text"
    if args.prepare:
        log.say(text=_machine_text.prepare(folder, int(args.text_mb * 1e6), SIZES[args.size].vocab_size))
        return 0
    if args.text is None:
        todo = (folder, int(args.text_mb * 1e6), SIZES[args.size].vocab_size)
        multiprocessing.get_context("spawn").Process(target=_machine_text.prepare, args=todo, daemon=True).start()
    noise = torch.randint(0, SIZES[args.size].vocab_size, (4_000_000,), device=args.device, dtype=torch.int32)
    bench = Bench(args, {"train": noise, "validation": noise})
    try:
        step_s = measured_step_s(bench, log)  # meanwhile the text is made ready
    except Exception as bad:  # whatever a compiler may fail with
        if not args.compile:
            raise
        log.say(compiling_failed=f"{type(bad).__name__}: {bad}"[:500])
        args.compile = False
        bench = Bench(args, bench.tokens)
        step_s = measured_step_s(bench, log)
    while not (folder / "text.json").exists():
        time.sleep(0.2)
        if log.left_s() < END_S:
            log.say(failed="the text was not ready in time")
            return 1
    log.say(text=json.loads((folder / "text.json").read_text()))
    bench.tokens = {
        name: torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.int32)).to(args.device)
        for name in ("train", "validation")
    }
    plans = [plan for plan in PLANS if plan.name in args.runs]
    # a member's own steps and the rounds take a fifth more than the gradients
    fitting = (log.left_s() - END_S) / (1.2 * step_s * min(args.fit, len(plans)))
    n_steps = max(1, min(args.steps, int(fitting) // 30 * 30 or int(fitting)))
    log.say(steps=n_steps, plans=[plan.name for plan in plans])
    for plan in plans:
        if log.left_s() < END_S:
            log.say(left_out=plan.name)
            continue
        try:
            train(bench, plan, n_steps, log)
        except torch.cuda.OutOfMemoryError as bad:
            log.say(run=plan.name, failed=str(bad).splitlines()[0])
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
