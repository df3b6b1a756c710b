"""What hostile members can do to a run: the loss of the honest under each attack, for each aggregation rule.

    python benchmarks/attacks.py
    python benchmarks/attacks.py --rules norm-cap nearest-neighbours --attacks flip against --hostile 2 --peers 10
    python benchmarks/attacks.py --codec topk512-2bit --rules norm-cap geometric-median

The real engine in virtual time, on the task of benchmarks/churn.py. Hostile members own nothing, know what all push, act
together, and claim a thousand times their tokens and steps (legion_p2p/sim/attackers.py). A cell is the final loss of the honest
divided by that of the same honest members alone, who trust each other (rule mean): 1 is harmless. "alone": nobody is hostile, so
what the rule costs.
"""

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
import trio
from churn import BATCH, N_HIDDEN, N_IN, N_TEACHER, WIDE, Task, run

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.attackers import ATTACKS, Conspiracy
from legion_p2p.sim.swarm import Swarm

RULES = ("norm-cap", "multi-krum", "geometric-median", "centered-clip", "nearest-neighbours")
HORIZON_S = 300.0  # virtual
STEP_S = 0.5
LOST = 1e9  # a loss beyond that is written as infinite


async def final_loss(seed: int, n_honest: int, n_hostile: int, attack: str, spec: RoundSpec, sizes: Any, slow: int) -> float:
    """The mean of three looks at the end."""
    task = Task(seed, sizes)
    async with Swarm(
        seed=seed, numel=len(task.start), start=task.start, local_step=task.local_step, round=spec, step_s=STEP_S
    ) as swarm:
        honest = [await swarm.add(f"p{i}", step_s=STEP_S * (4 if i < slow else 1)) for i in range(n_honest)]
        hostile = [await swarm.add(f"x{i}", weight=0) for i in range(n_hostile)]
        if hostile:
            conspiracy = Conspiracy(ATTACKS[attack])
            conspiracy.overhear(honest)
            conspiracy.turn(hostile)
        await trio.sleep(HORIZON_S)
        losses = []
        for _ in range(3):
            await trio.sleep(5)
            losses.append(task.loss(honest[0].engine.common_parameters()))
        if hostile:
            assert conspiracy.n_changed > 100, f"{conspiracy.n_changed} hostile pushes"
        return statistics.mean(losses)


def ratio(losses: list[float], alone: list[float]) -> str:
    """Geometric mean over seeds."""
    if any(not math.isfinite(loss) or loss > LOST for loss in losses):
        return "inf"
    value = math.exp(statistics.mean(math.log(a / b) for a, b in zip(losses, alone, strict=True)))
    return f"{value:.2f}" if value < 100 else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", nargs="+", default=[*RULES])
    parser.add_argument("--attacks", nargs="*", default=[*ATTACKS])
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--hostile", type=int, default=1)
    parser.add_argument("--slow", type=int, default=0, help="honest members at a quarter of the speed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--norm-cap", type=float, default=1.0)
    parser.add_argument("--weight-cap", type=float, default=1.5)
    parser.add_argument("--restore-length", type=float, default=0.0, help="of RoundSpec; 1 in a run of which nothing is said")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    sizes = WIDE if args.codec.startswith("topk") else (N_IN, N_HIDDEN, N_TEACHER, BATCH)
    shard_elements = 1024 if args.codec.startswith("topk") else 60
    n_honest, seeds = args.peers - args.hostile, range(args.seeds)

    def losses(rule: str, attack: str, n_hostile: int) -> list[float]:
        spec = RoundSpec(
            local_steps=10, push_codec=args.codec, update_codec="int8", dense_codec="", shard_elements=shard_elements,
            aggregation=rule, norm_cap=args.norm_cap, weight_cap=args.weight_cap,
            restore_length=args.restore_length if rule != "mean" else 0.0,
        )  # fmt: skip
        return [run(final_loss, seed, n_honest, n_hostile, attack, spec, sizes, args.slow) for seed in seeds]

    alone = losses("mean", "", 0)
    print(json.dumps(vars(args)), f"alone, by mean: {[round(loss, 5) for loss in alone]}", sep="\n")
    print("| rule | alone |", " | ".join(args.attacks), "|")
    print("|---" * (len(args.attacks) + 2) + "|")
    for rule in args.rules:
        cells = [ratio(losses(rule, "", 0), alone)]
        cells += [ratio(losses(rule, attack, args.hostile), alone) for attack in args.attacks]
        print(f"| {rule} |", " | ".join(cells), "|", flush=True)
    print(f"{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
