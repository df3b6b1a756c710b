"""Whether pushes of liars lower the loss of other members less than honest ones do: what a test by held-out loss would go by.

    python benchmarks/held_out.py --attacks random
    python benchmarks/held_out.py --attacks none --unlike

The reference work of benchmarks/hostile.py, 8 peers of which 2 lie. In every second round, for one shard, three honest peers each
try all pushes of the round on a batch of their own: the reference less a quarter of the push, its length capped at the median.
The gain is the loss before less the loss after. At its full length one peer's push of one shard is often too long to help, honest
or not; what helps is the mean. Shown: the median of the three, in units of the round's median. Written: OUT.json.
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from convergence import Windows
from hostile import MEANT, Cell, texts, train_work

from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.gpt import GPT

N_PEERS, N_LIARS = 8, 2
N_VERIFIERS = 3
BATCH = 16  # windows that a verifier tries each push on
TRIED_SHARE = 0.25  # of a push's length
EVERY = 2  # rounds
UNLIKE = {"honest0": "other text", "honest1": "a quarter of the speed", "honest2": "a round late", "honest3": "joins halfway"}


class Verifiers:
    """Three honest peers that try pushes, other ones in each round."""

    def __init__(self, cell):
        training, _ = texts()
        self.model = GPT.from_preset("xxs", torch.Generator().manual_seed(0))
        self.view = FlatView(self.model.named_parameters())
        self.batches = [Windows(training, BATCH, 1000 + cell.seed, rank, N_PEERS) for rank in range(cell.n_honest)]
        self.rng = random.Random(cell.seed)
        self.rounds = []

    def look(self, work, shard, values):
        """Before a shard of a round is combined."""
        if work.version % EVERY != 1 or shard != (work.version // EVERY) % work.plan.n_shards:
            return
        start, end = work.plan.bounds(shard)
        cap = statistics.median_low([float(value.norm()) for value in values.values()])
        gains = {name: [] for name in values}
        for source in self.rng.sample(self.batches, N_VERIFIERS):
            batch = source.draw()
            before = self.loss(work.reference, batch)
            for name, value in values.items():
                tried = work.reference.clone()
                tried[start:end] -= TRIED_SHARE * min(1.0, cap / max(float(value.norm()), 1e-30)) * value
                gains[name].append(before - self.loss(tried, batch))
        of = {name: statistics.median_low(gain) for name, gain in gains.items()}
        unit = statistics.median([abs(gain) for gain in of.values()]) or 1e-12
        self.rounds.append({name: gain / unit for name, gain in of.items()})

    @torch.no_grad()
    def loss(self, reference, batch):
        self.view.assign_slice(0, reference)
        return float(self.model(*batch)[1])


def kind_of(name, cell):
    if name.startswith("liar"):
        return MEANT.get(cell.attack, cell.attack)
    return f"honest, {UNLIKE[name]}" if cell.unlike and name in UNLIKE else "honest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", nargs="+", default=["random", "ALIE"])
    parser.add_argument("--unlike", action="store_true", help="four of the honest are unlike the others")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which nothing goes on")
    parser.add_argument("--out", type=Path, default=Path("held_out"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    until, found = time.time() + args.seconds, {}
    print("| pushes | number | median gain | below zero |\n|---|---|---|---|")
    for attack in args.attacks:
        n_liars = 0 if attack == "none" else N_LIARS
        cell = Cell("work", "nearest-neighbours + trend", attack, 0, N_PEERS - n_liars, n_liars, args.steps, args.unlike)
        verifiers = Verifiers(cell)
        train_work(cell, until, verifiers.look)
        found[attack] = verifiers.rounds
        kinds = {}
        for of in verifiers.rounds:
            for name, gain in of.items():
                kinds.setdefault(kind_of(name, cell), []).append(gain)
        for kind, gains in kinds.items():
            below = 100 * sum(gain < 0 for gain in gains) / len(gains)
            print(f"| {kind} | {len(gains)} | {statistics.median(gains):.2f} | {below:.0f} % |", flush=True)
        args.out.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
