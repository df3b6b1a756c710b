"""A swarm in one process without a network: its members step in lockstep, and learn as members of a run do.

LocalTrainer, LocalCopy, pack and combine are what real peers run. An answer comes `late` steps after its push, as that of a real
peer comes during its next steps. Members may be slow: one of period 4 makes a step in every fourth, and local steps follow from
that as core/pace.py says.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from _tasks import TASKS, Task

from legion_p2p.config import Rounds
from legion_p2p.config.new_run import chosen_rounds
from legion_p2p.core.learning_rate import annealed
from legion_p2p.core.pace import local_steps, ramped
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import InnerSpec, RunSpec
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.replica import LocalChange, combine, pack
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.tensor.outer import OuterState
from legion_p2p.train.inner_list import is_proportional
from legion_p2p.train.muon import MuonAdamW
from legion_p2p.train.parameters import param_specs

WARM_UP_STEPS = 50
FLOOR = 0.1
CLIP = 1.0
WEIGHT_DECAY = 0.1
OPTIMIZERS = {
    "adamw": lambda model, lr: torch.optim.AdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True),
    "muon": lambda model, lr: MuonAdamW.of(model, lr, weight_decay=WEIGHT_DECAY),
    "sgd": lambda model, lr: torch.optim.SGD(model.parameters(), lr, momentum=0.9),
    "adafactor": lambda model, lr: torch.optim.Adafactor(model.parameters(), lr, weight_decay=WEIGHT_DECAY),
}
BEFORE = RoundSpec(local_steps=10)
ALONE = ("sync", "alone")
AVERAGES: dict[str, Callable[[int], float]] = {
    "ema 0.9": lambda n: max(0.1, 1 / n),
    "ema 0.97": lambda n: max(0.03, 1 / n),
    "last 1/16": lambda n: min(1.0, 16 / n),
    "last 1/8": lambda n: min(1.0, 8 / n),
}
"""Averages of the common model: what the nth version counts. The last two are over a part of the run so far, as power functions
weigh (Karras et al., 2312.02696, section 3.1)."""


class Member:
    """A model, its optimizer, and its data: its own, or for the process that has those of all every member's."""

    def __init__(self, task: Task, optimizer: str, lr: float, seed: int, ranks: Any, n_members: int) -> None:
        self.task = task
        self.model = task.model(seed)
        self.optimizer = OPTIMIZERS[optimizer](self.model, lr)
        self.lr = lr
        self.sources = {rank: task.source(seed, rank, n_members) for rank in ranks}

    def step(self, factor: float, ranks: Any = None) -> bool:
        """One step at `factor` times the rate, on a batch of each of `ranks`; False: it has diverged."""
        drawn = [self.sources[rank].draw() for rank in (self.sources if ranks is None else ranks)]
        x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        loss = self.task.loss(self.model, (x, y))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()
        return math.isfinite(float(loss.detach()))


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
    averages: list[torch.Tensor] = field(default_factory=list)
    """One for each of AVERAGES."""


class Lockstep:
    """Members whose answers come after `late` steps; a round closes when all have pushed."""

    def __init__(self, members: list[Member], rounds: RoundSpec, late: int, periods: list[int]) -> None:
        self.members, self.rounds, self.late, self.periods = members, rounds, late, periods
        views = [FlatView(member.model.named_parameters()) for member in members]
        spec = RunSpec("lockstep", "", param_specs(views[0]), rounds)
        plan = spec.plan()
        bounds = [plan.bounds(shard) for shard in range(plan.n_shards)]
        start = views[0].snapshot()
        self.shards = [Shard(start[a:b].clone(), averages=[start[a:b].clone() for _ in AVERAGES]) for a, b in bounds]
        self.push_codecs = [shard_codec(spec, shard, rounds.push_codec) for shard in range(plan.n_shards)]
        self.update_codecs = [shard_codec(spec, shard, rounds.update_codec) for shard in range(plan.n_shards)]
        self.residuals: list[list[Any]] = [[None] * plan.n_shards for _ in members]
        self.mailboxes = [Mailbox() for _ in members]
        self.trainers = [
            LocalTrainer(LocalCopy(view, bounds, True, rounds.mixing), mailbox, streaming=rounds.streaming)
            for view, mailbox in zip(views, self.mailboxes, strict=True)
        ]
        self.agreements: list[float] = []
        self.push_bytes = self.update_bytes = 0
        """Of the first member's pushes, and of updates to one member."""
        self.step = 0
        for shard, state in enumerate(self.shards):
            for mailbox in self.mailboxes:
                mailbox.post(shard, 0, state.reference)
        self._take_in()

    def stepped(self, ranks: Any) -> None:
        """These have made a step."""
        self.step += 1
        for rank in ranks:
            self.trainers[rank].stepped(1)
        self._deliver(self.step)
        rounds = self.rounds
        reference = ramped(rounds.ramp_from, rounds.local_steps, rounds.ramp_steps, self.step - 1)
        for rank in ranks:
            trainer, others = self.trainers[rank], [float(p) for r, p in enumerate(self.periods) if r != rank]
            due = trainer.due(
                local_steps(reference, float(self.periods[rank]), others, rounds.min_local_steps, rounds.max_local_steps)
            )
            self._push(rank, trainer.hand_in(due) if due else [])
        self._close()
        if not self.late:
            self._deliver(self.step)

    def finish(self, model: torch.nn.Module) -> dict[str, float]:
        """Push what is left, as those do that leave; the losses of the common model and of its averages."""
        for _ in range(2):
            self._deliver(self.step + self.late)
            for rank, trainer in enumerate(self.trainers):
                self._push(rank, trainer.hand_in())
            self._close()
        view, task = FlatView(model.named_parameters()), self.members[0].task
        view.assign_slice(0, torch.cat([state.reference for state in self.shards]))
        losses = {"loss": task.evaluate(model)}
        for i, name in enumerate(AVERAGES):
            view.assign_slice(0, torch.cat([state.averages[i] for state in self.shards]))
            losses[name] = task.evaluate(model)
        return losses

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
                tokens = change.tokens * self.members[0].task.tokens
                contributions.append(Contribution(str(rank), state.version, state.version, tokens, 0.0, change.steps))
                self.push_bytes += len(payload) * (rank == 0)
            closed = Closed(state.version, tuple(contributions), len(contributions), ())
            codec = self.update_codecs[shard]
            made = combine(state.reference, state.residual, state.outer, closed, values, self.rounds, codec)
            self.update_bytes += len(made.payload or b"")
            state.reference, state.residual, state.outer = made.reference, made.owner_residual, made.outer
            state.pushed = {}
            state.version += 1
            for weight_of, average in zip(AVERAGES.values(), state.averages, strict=True):
                average.lerp_(made.reference, weight_of(state.version))
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


def rate(step: int, n_steps: int, schedule: str = "cosine") -> float:
    """Factor on the learning rate: warm-up, then a cosine to a tenth; nothing; or what `legion-peer` does towards a target."""
    warm_up = min(WARM_UP_STEPS, max(1, n_steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == "constant":
        return 1.0
    if schedule == "anneal":
        return annealed(InnerSpec().anneal, step / n_steps)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


def rounds_of(setting: str, optimizer: torch.optim.Optimizer, changes: dict[str, Any]) -> RoundSpec:
    """What a run comes to, as `legion.Optimizer` creates it. `setting` may be a name of links."""
    if setting == "before":
        return msgspec.structs.replace(BEFORE, **changes)
    rounds = chosen_rounds(Rounds(), "auto" if setting == "now" else setting)  # type: ignore[arg-type]
    if is_proportional(optimizer):
        rounds = msgspec.structs.replace(rounds, restore_length=0.0)
    return msgspec.structs.replace(rounds, **changes)


def train(run: dict[str, Any]) -> dict[str, Any]:
    """One run: the validation loss of its model at the end, and what was seen of its rounds."""
    task, n_members, setting = TASKS[run.get("task", "text")], run["members"], run["setting"]
    periods = run.get("periods") or [1] * n_members
    began = time.process_time()
    ranks = [range(n_members)] if setting == "sync" else [[rank] for rank in range(1 if setting == "alone" else n_members)]
    members = [Member(task, run["optimizer"], run["lr"], run["seed"], own, n_members) for own in ranks]
    swarm = None
    if setting not in ALONE:
        rounds = rounds_of(setting, members[0].optimizer, run["changes"])
        swarm = Lockstep(members, rounds, run["late"], periods)
    for step in range(run["steps"]):
        factor = rate(step, run["steps"], run.get("schedule", "cosine"))
        moving = [rank for rank, period in enumerate(periods) if step % period == 0]
        if setting == "sync":
            is_well = members[0].step(factor, moving)
        elif swarm is None:
            is_well = members[0].step(factor)
        else:
            is_well = all(members[rank].step(factor) for rank in moving)
        if not is_well:
            return {"loss": math.inf, "cpu_s": round(time.process_time() - began, 1)}
        if swarm is not None:
            swarm.stepped(moving)
    if swarm is None:
        return {"loss": task.evaluate(members[0].model), "cpu_s": round(time.process_time() - began, 1)}
    made: dict[str, Any] = swarm.finish(task.model(0))
    tokens = run["steps"] * task.tokens
    made["bytes"] = [round(swarm.push_bytes / tokens, 4), round(swarm.update_bytes / tokens, 4)]
    if swarm.agreements:
        third = max(1, len(swarm.agreements) // 3)
        made["agreement"] = [round(statistics.fmean(part), 2) for part in (swarm.agreements[:third], swarm.agreements[-third:])]
    return made | {"cpu_s": round(time.process_time() - began, 1)}
