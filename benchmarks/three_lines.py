"""What a swarm learns by the three lines of the README, beside one process that has the batches of all.

    python benchmarks/three_lines.py --optimizers adamw --members 2 --seeds 0 1 2
    python benchmarks/three_lines.py --optimizers adamw --members 2 --late 1 6 11 --rates 0.012

A transformer of some 35,000 parameters on the source of Python's standard library, eight windows of 64 bytes a member and step,
warm-up and a cosine to a tenth, for several rates. "sync": one process with the joint batch. "alone": one member on its part of
the text, without the others. "now": a run of which nothing is said. "before": what such a run was until restore_length came.

The swarm is in lockstep in one process, without a network: LocalTrainer, LocalCopy, pack and combine are what real peers run, and
an answer comes `--late` steps after its push, as that of a real peer comes during its next steps. Every finished run is kept in
the JSON, and not repeated.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import torch

from legion_p2p.config import Rounds
from legion_p2p.config.new_run import chosen_rounds
from legion_p2p.core.pace import ramped
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.replica import LocalChange, combine, pack
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.tensor.outer import OuterState
from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig
from legion_p2p.train.inner_list import is_proportional
from legion_p2p.train.muon import MuonAdamW
from legion_p2p.train.parameters import param_specs

SHAPE = GPTConfig(n_layer=2, n_head=2, width=32, context=64)
BATCH = 8
WARM_UP_STEPS = 50
FLOOR = 0.1
CLIP = 1.0
WEIGHT_DECAY = 0.1
N_VALIDATION = 256  # windows
OPTIMIZERS = {
    "adamw": lambda model, lr: torch.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True),
    "muon": lambda model, lr: MuonAdamW.of(model, lr, weight_decay=WEIGHT_DECAY),
    "sgd": lambda model, lr: torch.optim.SGD(model.parameters(), lr, momentum=0.9),
    "adafactor": lambda model, lr: torch.optim.Adafactor(model.parameters(), lr, weight_decay=WEIGHT_DECAY),
}
RATES = {"adamw": (3e-3, 6e-3, 12e-3), "muon": (0.01, 0.02, 0.04), "sgd": (0.1, 0.3, 1.0), "adafactor": (0.01, 0.03, 0.1)}
BEFORE = RoundSpec(local_steps=10)
ALONE = ("sync", "alone")


class Member:
    """A model, its optimizer, and its parts of the text: one, or for the process that has all those of every member."""

    def __init__(self, optimizer: str, lr: float, seed: int, text: Any, ranks: Any, n_members: int) -> None:
        self.model = GPT(SHAPE, torch.Generator().manual_seed(seed))
        self.optimizer = OPTIMIZERS[optimizer](self.model, lr)
        self.lr = lr
        share = len(text) // n_members
        self.parts = [
            (text[rank * share : (rank + 1) * share], np.random.Generator(np.random.PCG64([seed, rank]))) for rank in ranks
        ]

    def step(self, factor: float) -> bool:
        """One step at `factor` times the rate; False: it has diverged."""
        drawn = [windows(part, rng.integers(0, len(part) - SHAPE.context - 1, BATCH)) for part, rng in self.parts]
        _, loss = self.model(*(torch.cat(x) for x in zip(*drawn, strict=True)))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        return math.isfinite(float(loss.detach()))


def windows(text: Any, starts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.from_numpy(text[starts[:, None] + np.arange(SHAPE.context + 1)].astype(np.int64))
    return both[:, :-1], both[:, 1:]


@dataclass(eq=False)
class Shard:
    """What its owner has."""

    reference: torch.Tensor
    residual: torch.Tensor | None = None
    outer: OuterState = field(default_factory=OuterState)
    version: int = 0
    pushed: dict[int, LocalChange] = field(default_factory=dict)
    answers: list[tuple[int, int, torch.Tensor]] = field(default_factory=list)
    """When it comes, its version, and the reference."""


class Lockstep:
    """Members whose pushes arrive together, and whose answers come after `late` steps."""

    def __init__(self, members: list[Member], rounds: RoundSpec, late: int) -> None:
        self.members, self.rounds, self.late = members, rounds, late
        views = [FlatView(member.model.named_parameters()) for member in members]
        spec = RunSpec("lockstep", "", param_specs(views[0]), rounds)
        plan = spec.plan()
        bounds = [plan.bounds(shard) for shard in range(plan.n_shards)]
        start = views[0].snapshot()
        self.shards = [Shard(start[a:b].clone()) for a, b in bounds]
        self.push_codecs = [shard_codec(spec, shard, rounds.push_codec) for shard in range(plan.n_shards)]
        self.update_codecs = [shard_codec(spec, shard, rounds.update_codec) for shard in range(plan.n_shards)]
        self.residuals: list[list[Any]] = [[None] * plan.n_shards for _ in members]
        self.mailboxes = [Mailbox() for _ in members]
        self.trainers = [
            LocalTrainer(LocalCopy(view, bounds, True, rounds.mixing), mailbox, streaming=rounds.streaming)
            for view, mailbox in zip(views, self.mailboxes, strict=True)
        ]
        self.agreements: list[float] = []
        self.step = 0
        for shard, state in enumerate(self.shards):
            for mailbox in self.mailboxes:
                mailbox.post(shard, 0, state.reference)
        self._take_in()

    def stepped(self) -> None:
        """All have made a step."""
        self.step += 1
        for trainer in self.trainers:
            trainer.stepped(1)
        self._deliver(self.step)
        rounds = self.rounds
        local_steps = ramped(rounds.ramp_from, rounds.local_steps, rounds.ramp_steps, self.step - 1)
        for rank, trainer in enumerate(self.trainers):
            self._push(rank, trainer.hand_in(due) if (due := trainer.due(local_steps)) else [])
        self._close()
        if not self.late:
            self._deliver(self.step)

    def finish(self) -> GPT:
        """Push what is left, as those do that leave; the common model."""
        for _ in range(2):
            self._deliver(self.step + self.late)
            for rank, trainer in enumerate(self.trainers):
                self._push(rank, trainer.hand_in())
            self._close()
        model = GPT(SHAPE, torch.Generator().manual_seed(0))
        FlatView(model.named_parameters()).assign_slice(0, torch.cat([state.reference for state in self.shards]))
        return model

    def _push(self, rank: int, changes: list[LocalChange]) -> None:
        for change in changes:
            self.shards[change.shard].pushed[rank] = change

    def _close(self) -> None:
        for shard, state in enumerate(self.shards):
            if len(state.pushed) < len(self.members):
                continue
            values, contributions = {}, []
            for rank, change in sorted(state.pushed.items()):
                push = self.push_codecs[shard]
                payload, self.residuals[rank][shard] = pack(change, self.residuals[rank][shard], push, self.rounds.feedback_decay)
                values[str(rank)] = push.decode(payload, state.reference.numel())
                tokens = change.tokens * BATCH * SHAPE.context
                contributions.append(Contribution(str(rank), state.version, state.version, tokens, 0.0, change.steps))
            closed = Closed(state.version, tuple(contributions), len(contributions), ())
            codec = self.update_codecs[shard]
            made = combine(state.reference, state.residual, state.outer, closed, values, self.rounds, codec)
            state.reference, state.residual, state.outer = made.reference, made.owner_residual, made.outer
            state.pushed = {}
            state.version += 1
            state.answers.append((self.step + self.late, state.version, made.reference))
            if made.agreement is not None:
                self.agreements.append(made.agreement)

    def _deliver(self, now: int) -> None:
        for shard, state in enumerate(self.shards):
            for _, version, reference in [answer for answer in state.answers if answer[0] <= now]:
                for mailbox in self.mailboxes:
                    mailbox.post(shard, version, reference)
                    mailbox.settle(shard)
            state.answers = [answer for answer in state.answers if answer[0] > now]
        self._take_in()

    def _take_in(self) -> None:
        for trainer in self.trainers:
            trainer.take_in()


def rate(step: int, n_steps: int) -> float:
    """Factor on the learning rate: warm-up, then a cosine to a tenth."""
    warm_up = min(WARM_UP_STEPS, max(1, n_steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


@torch.no_grad()
def evaluate(model: GPT, text: Any) -> float:
    starts = np.linspace(0, len(text) - SHAPE.context - 2, N_VALIDATION).astype(int)
    losses = [float(model(*windows(text, starts[i : i + 64]))[1]) for i in range(0, N_VALIDATION, 64)]
    return statistics.fmean(losses)


def rounds_of(setting: str, optimizer: torch.optim.Optimizer, changes: dict[str, Any]) -> RoundSpec:
    """What a run comes to, as `legion.Optimizer` creates it."""
    if setting == "before":
        return msgspec.structs.replace(BEFORE, **changes)
    rounds = chosen_rounds(Rounds(), "auto")
    if is_proportional(optimizer):
        rounds = msgspec.structs.replace(rounds, restore_length=0.0)
    return msgspec.structs.replace(rounds, **changes)


def train(run: dict[str, Any], texts: Any) -> dict[str, Any]:
    """One run: the validation loss of its model at the end."""
    training, validation = texts
    began, n_members, setting = time.process_time(), run["members"], run["setting"]
    ranks = [range(n_members)] if setting == "sync" else [[rank] for rank in range(1 if setting == "alone" else n_members)]
    members = [Member(run["optimizer"], run["lr"], run["seed"], training, own, n_members) for own in ranks]
    swarm = None
    if setting not in ALONE:
        swarm = Lockstep(members, rounds_of(setting, members[0].optimizer, run["changes"]), run["late"])
    for step in range(run["steps"]):
        factor = rate(step, run["steps"])
        if not all(member.step(factor) for member in members):
            return {"loss": math.inf, "cpu_s": time.process_time() - began}
        if swarm is not None:
            swarm.stepped()
    made: dict[str, Any] = {"loss": evaluate(swarm.finish() if swarm else members[0].model, validation)}
    if swarm is not None and swarm.agreements:
        third = max(1, len(swarm.agreements) // 3)
        made["agreement"] = [round(statistics.fmean(part), 2) for part in (swarm.agreements[:third], swarm.agreements[-third:])]
    return made | {"cpu_s": round(time.process_time() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    parser.add_argument("--members", nargs="+", type=int, default=[2])
    parser.add_argument("--settings", nargs="+", default=["sync", "alone", "before", "now"])
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates to sweep, in place of the usual ones")
    parser.add_argument("--late", nargs="+", type=int, default=[1], help="steps after which an answer comes")
    parser.add_argument("--changes", type=json.loads, default={}, help="fields of RoundSpec that differ, as JSON")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("three_lines.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    texts = tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())
    runs = json.loads(args.out.read_text()) if args.out.exists() else {}
    print("| optimizer | members | setting | late | rate | loss | of each seed | agreement, first and last third |")
    print("|---|---|---|---|---|---|---|---|")
    for optimizer, n_members, setting in itertools.product(args.optimizers, args.members, args.settings):
        lates = [0] if setting in ALONE else args.late
        for late, lr in itertools.product(lates, args.rates or RATES[optimizer]):
            made = []
            for seed in args.seeds:
                run = {
                    "optimizer": optimizer, "members": n_members, "setting": setting, "lr": lr, "seed": seed,
                    "steps": args.steps, "late": late, "changes": {} if setting in ALONE else args.changes,
                }  # fmt: skip
                name = json.dumps(run, sort_keys=True)
                if name not in runs:
                    runs[name] = train(run, texts)
                    args.out.write_text(json.dumps(runs, indent=0))
                made.append(runs[name])
            losses = [one["loss"] for one in made]
            cells = [optimizer, n_members, setting, late, f"{lr:g}", f"{statistics.fmean(losses):.4f}"]
            cells += [", ".join(f"{loss:.4f}" for loss in losses), ", ".join(map(str, made[-1].get("agreement", [])))]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
