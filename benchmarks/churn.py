"""What churn costs: the loss curve, the share of steps that count, and how long a shard stands still when its owner dies.

    python benchmarks/churn.py
    python benchmarks/churn.py --only loss --seeds 1
    python benchmarks/churn.py --only leaving

The real engine in virtual time, over the network of legion_p2p.sim (5 ms each way); peers are killed without a word, and others
start in their place. The model is a network of one hidden layer that learns what a larger one says, from noisy answers: small,
but not convex. Curves are compared at equal tokens: a peer that is not there trains nothing.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import trio
from torch import Tensor
from torch.nn.functional import mse_loss
from trio.testing import MockClock

from legion_p2p.config import PeerConfig
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

N_IN, N_HIDDEN, N_TEACHER, BATCH = 8, 24, 64, 16
NUMEL = N_IN * N_HIDDEN + 2 * N_HIDDEN
NOISE = 0.1  # standard deviation of what is added to the answers trained on
ROUND = {"push_codec": "int8", "update_codec": "int8", "shard_elements": 60}
WIDE = (32, 124, 256, 64)  # the same four of the model whose pushes are sparse
KNOWN = {"goodput at 20 % churn per hour": 0.88}


class Task:
    """The teacher, and the loss of a student given by its flat parameters."""

    def __init__(self, seed: int, sizes: tuple[int, int, int, int] = (N_IN, N_HIDDEN, N_TEACHER, BATCH)) -> None:
        self.n_in, self.n_hidden, n_teacher, self.batch = sizes
        self.random = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(self.n_in, n_teacher, generator=self.random) / self.n_in**0.5
        self.out = torch.randn(n_teacher, generator=self.random) / n_teacher**0.5
        self.x = torch.randn(2048, self.n_in, generator=self.random)
        self.y = self.answer(self.x)
        self.start = torch.randn((self.n_in + 2) * self.n_hidden, generator=self.random) / self.n_in**0.5

    def answer(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.hidden) @ self.out

    def student(self, theta: Tensor, x: Tensor) -> Tensor:
        hidden, bias, out = theta.split([self.n_in * self.n_hidden, self.n_hidden, self.n_hidden])
        return torch.tanh(x @ hidden.view(self.n_in, self.n_hidden) + bias) @ out

    def local_step(self, peer: SimPeer) -> None:
        """One step of SGD."""
        (gradient,) = torch.autograd.grad(self.batch_loss(peer.theta), peer.theta)
        with torch.no_grad():
            peer.theta -= 0.05 * gradient

    def batch_loss(self, theta: Tensor) -> Tensor:
        """On examples that nobody has seen."""
        x = torch.randn(self.batch, self.n_in, generator=self.random)
        y = self.answer(x) + NOISE * torch.randn(self.batch, generator=self.random)
        return mse_loss(self.student(theta, x), y)

    def loss(self, theta: Tensor) -> float:
        with torch.no_grad():
            return float(mse_loss(self.student(theta, self.x), self.y))


class Books:
    """Steps that were made, and those of them that ended in an update."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.n_steps = 0
        self.everyone: list[SimPeer] = []
        self.open: list[tuple[SimPeer, int, int, int]] = []  # of the dead: peer, shard, contribution, steps
        self.useful = 0.0

    def step(self, peer: SimPeer) -> None:
        self.task.local_step(peer)
        self.n_steps += 1

    def close(self, peer: SimPeer) -> None:
        """It is about to die, or the run to end: what of its steps is in an update, and what may still come into one."""
        local_trainer, n_shards = peer.local_trainer, peer.engine.plan.n_shards
        for shard, replica in peer.engine.shards.replicas.items():
            steps = local_trainer._handed_in[shard][0]
            pending = replica.life.push.packed
            if shard in local_trainer._busy:
                last = steps if pending is None else pending.steps
                steps = max(0, steps - last)
                if pending is not None:
                    self.open.append((peer, shard, pending.seq, last))
            self.useful += steps / n_shards

    def goodput(self, survivor: SimPeer) -> float:
        for peer, shard, seq, steps in self.open:
            if survivor.engine.shards.replicas[shard].chain.includes(peer.id, seq):
                self.useful += steps / survivor.engine.plan.n_shards
        return self.useful / self.n_steps


async def churn(swarm: Swarm, rng: random.Random, every_s: float, on_kill: Callable[[SimPeer], None]) -> None:
    """Every so often one dies, and another comes in its place."""
    n = 0
    while True:
        await trio.sleep(every_s * rng.uniform(0.5, 1.5))
        victim = rng.choice(list(swarm.living()))
        on_kill(victim)
        await swarm.kill(victim.name)
        swarm.start(f"new{n}", step_s=victim.step_s)
        n += 1


async def curve(seed: int, n_peers: int, until_steps: int, churn_every_s: float | None) -> list[tuple[int, float]]:
    """Steps of all peers together, and the loss of the common model after them."""
    task, rng = Task(seed), random.Random(seed)
    books, points = Books(task), []
    async with Swarm(
        seed=seed, numel=NUMEL, start=task.start, local_step=books.step, round=RoundSpec(local_steps=10, **ROUND), step_s=0.5
    ) as swarm:
        for i in range(n_peers):
            await swarm.add(f"p{i}")
        async with trio.open_nursery() as nursery:
            if churn_every_s is not None:
                nursery.start_soon(churn, swarm, rng, churn_every_s, lambda peer: None)
            while books.n_steps < until_steps:
                await trio.sleep(2.5)
                points.append((books.n_steps, task.loss(swarm.living()[0].engine.common_parameters())))
            nursery.cancel_scope.cancel()
    return points


def at_tokens(points: list[tuple[int, float]], n_steps: int) -> float:
    """The loss after so many steps, between two points that were measured."""
    for (before, a), (after, b) in pairwise(points):
        if before <= n_steps <= after:
            return a + (b - a) * (n_steps - before) / max(1, after - before)
    raise ValueError(n_steps)


def loss_under_churn(seeds: int, n_peers: int, until_steps: int) -> dict[str, Any]:
    """20 % of the peers a minute, against nobody."""
    every_s = 60 / (0.2 * n_peers)
    marks = [until_steps * k // 10 for k in range(2, 10)]
    rows = []
    for seed in range(seeds):
        calm = run(curve, seed, n_peers, until_steps, None)
        rough = run(curve, seed, n_peers, until_steps, every_s)
        rows.append([(at_tokens(calm, m), at_tokens(rough, m)) for m in marks])
    ratios = [statistics.mean(row[k][1] / row[k][0] for row in rows) for k in range(len(marks))]
    return {
        "peers": n_peers, "seeds": seeds, "churn_per_minute": 0.2, "steps": marks,
        "calm": [round(statistics.mean(row[k][0] for row in rows), 5) for k in range(len(marks))],
        "churn": [round(statistics.mean(row[k][1] for row in rows), 5) for k in range(len(marks))],
        "ratio": [round(r, 4) for r in ratios], "ratio_worst": round(max(ratios), 4), "ratio_last": round(ratios[-1], 4),
        "ratio_last_of_each_seed": [round(row[-1][1] / row[-1][0], 4) for row in rows],
    }  # fmt: skip


async def curve_of_leavers(
    seed: int, codec: str, n_peers: int, until_steps: int, leave_every_s: float | None, push_last: bool
) -> list[tuple[int, float]]:
    """As `curve`, but they push what they have and leave in order; with or without telling that it is their last push."""
    task, rng = Task(seed, WIDE), random.Random(seed)
    books, points = Books(task), []
    rounds = RoundSpec(local_steps=10, push_codec=codec, update_codec="int8", feedback_decay=0.95, dense_below=0)
    async with Swarm(
        seed=seed, numel=task.start.numel(), shape=(task.n_in + 2, task.n_hidden), start=task.start, local_step=books.step,
        round=rounds, step_s=0.5,
    ) as swarm, trio.open_nursery() as nursery:  # fmt: skip

        async def leave(peer: SimPeer) -> None:
            if push_last:
                peer.engine.push_last()
            peer.max_steps = peer.local_trainer.steps
            await swarm.until(lambda: peer.engine.progress.done, 60, "the rest is in an update")
            await swarm.leave(peer.name)

        async def come_and_go(every_s: float) -> None:
            n = 0
            while True:
                await trio.sleep(every_s * rng.uniform(0.5, 1.5))
                leaver = rng.choice([peer for peer in swarm.living() if peer.max_steps is None])
                swarm.start(f"new{n}", step_s=leaver.step_s)
                nursery.start_soon(leave, leaver)
                n += 1

        for i in range(n_peers):
            await swarm.add(f"p{i}")
        if leave_every_s is not None:
            nursery.start_soon(come_and_go, leave_every_s)
        while books.n_steps < until_steps:
            await trio.sleep(2.5)
            points.append((books.n_steps, task.loss(swarm.living()[0].engine.common_parameters())))
        nursery.cancel_scope.cancel()
    return points


def loss_of_leavers(codec: str, seeds: int, n_peers: int = 8, until_steps: int = 1600) -> dict[str, Any]:
    """All of the peers a minute, against nobody: the loss at nine tenths, relative to that, with and without a last push."""
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(seeds):
        calm = at_tokens(run(curve_of_leavers, seed, codec, n_peers, until_steps, None, False), until_steps * 9 // 10)
        for push_last, row in ratios.items():
            points = run(curve_of_leavers, seed, codec, n_peers, until_steps, 60 / n_peers, push_last)
            row.append(at_tokens(points, until_steps * 9 // 10) / calm)
    return {"codec": codec, "peers": n_peers, "seeds": seeds, "leave_per_minute": 1.0} | {
        name: {"mean": round(statistics.mean(row), 4), "of_each_seed": [round(ratio, 4) for ratio in row]}
        for name, row in (("as any push", ratios[False]), ("as the last push", ratios[True]))
    }


async def goodput(seed: int, n_peers: int, hours: float, n_stragglers: int) -> dict[str, Any]:
    """Steps of 5 s, rounds of 100 s; announcements five times rarer than by default, so that an hour takes a minute of CPU."""
    task, rng = Task(seed), random.Random(seed)
    books = Books(task)
    membership = MembershipConfig(announce_s=10.0, suspect_after_s=22.5, grace_s=15.0, probe_every_s=5.0)
    rounds = RoundSpec(local_steps=20, **ROUND)
    deaths = 0

    def on_kill(peer: SimPeer) -> None:
        nonlocal deaths
        deaths += 1
        books.close(peer)

    async with Swarm(
        seed=seed, numel=NUMEL, start=task.start, local_step=books.step, round=rounds, step_s=5.0,
        config=PeerConfig(membership=membership),
    ) as swarm:  # fmt: skip
        for i in range(n_peers):
            await swarm.add(f"p{i}", step_s=20.0 if i < n_stragglers else 5.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn, swarm, rng, 3600 / (0.2 * n_peers), on_kill)
            await trio.sleep(3600 * hours)
            nursery.cancel_scope.cancel()
        n_steps = books.n_steps
        await swarm.settle(600)  # what is on its way at the end is no loss
        for peer in swarm.living():
            books.close(peer)
        return {
            "peers": n_peers, "stragglers": n_stragglers, "hours": hours, "churn_per_hour": 0.2, "deaths": deaths,
            "steps": n_steps, "goodput": round(books.goodput(swarm.living()[0]), 4),
        }  # fmt: skip


async def standstill(seed: int, n_kills: int) -> dict[str, Any]:
    """From the death of a shard's owner until all others hold a version that its next owner made. Rounds of a second."""
    took = []
    async with Swarm(
        seed=seed, round=RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=16)
    ) as swarm:
        for i in range(6):
            await swarm.add(f"p{i}")
        for i in range(n_kills):
            await trio.sleep(12 + 0.37 * i)  # at another moment of the round each time
            owner = next(p for p in swarm.living() if p.engine.shards.ownership(0).owner == p.id)
            await swarm.kill(owner.name)
            others = [(p, p.versions()[0]) for p in swarm.living()]
            took.append(
                await swarm.until(
                    lambda others=others, dead=owner.id: all(
                        p.versions()[0] > before and p.engine.shards.replicas[0].chain.owner != dead for p, before in others
                    ),
                    60,
                )
            )
            await swarm.add(f"new{i}")
    return {"kills": n_kills, "round_s": 1.0, "median_s": round(statistics.median(took), 2), "worst_s": round(max(took), 2)}


def run(fn: Callable[..., Any], *args: Any) -> Any:
    return trio.run(fn, *args, clock=MockClock(autojump_threshold=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("loss", "leaving", "goodput", "standstill"))
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6000, help="of all peers together, in each run of the loss")
    parser.add_argument("--hours", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    found: dict[str, Any] = {"known": KNOWN}
    if args.only in (None, "standstill"):
        found["standstill"] = run(standstill, 0, 10)
    if args.only in (None, "loss"):
        found["loss"] = loss_under_churn(args.seeds, args.peers, args.steps)
    if args.only in (None, "leaving"):
        found["leaving"] = [loss_of_leavers(codec, args.seeds) for codec in ("topk512-2bit", "topk128-2bit")]
    if args.only in (None, "goodput"):
        found["goodput"] = [run(goodput, 0, args.peers, args.hours, n) for n in (0, args.peers // 5)]
    found["cpu_s"] = round(time.process_time() - began, 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
