"""What it costs two regions to sync for the first time after they trained apart for long.

    python benchmarks/reunion.py --apart 800 --after 600
    python benchmarks/reunion.py --apart 800 --after 600 --behind 600    the second region has made 200 steps when they first sync

The reference work as in benchmarks/regions.py: the real engine over the network of legion_p2p.sim, real training, virtual time.
Two places, each a region, begin from the same founder's model with a wall between them, which falls when the first has made
`--apart` steps. Their losses are measured every `--every` steps. Rise: of a region's loss after the wall fell, over the lowest
that it ever had until then. Every finished run is kept in the JSON, and not repeated.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import trio
from convergence import evaluate
from regions import PLACES, SPREAD, Peers, mean_steps
from trio.testing import MockClock

from legion_p2p.services.run.progress import Progress
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.gpt import GPT

FIELDS = ("peers", "apart", "behind", "after", "links")


async def reunite(run: str, args: argparse.Namespace, texts: tuple[np.ndarray, np.ndarray], seed: int) -> dict:
    """Losses of both regions by steps of the first, from some steps before the wall falls."""
    args.steps = args.apart + args.after
    peers = Peers(run, args, texts[0], seed)
    scratch = GPT.from_preset("xxs", torch.Generator().manual_seed(seed))
    into = FlatView(scratch.named_parameters())

    def loss(copy: torch.Tensor) -> float:
        into.assign_slice(0, copy)
        return evaluate(scratch, texts[1])

    began = time.process_time()
    async with peers.swarm as swarm:
        for i, (name, place) in enumerate(peers.place.items()):
            step_s = args.step_s * (1 + SPREAD * (i / (len(peers.place) - 1) - 0.5))
            peer = await swarm.add(name, step_s=step_s, training=False, region=place)
            peer.hung = True
        sides = [[peer for peer in swarm.living() if peers.place[peer.name] == place] for place in PLACES]
        for peer in swarm.living():
            peer.training, peer.max_steps = True, args.steps
            peer.engine.report(Progress(step_s=peer.step_s, training=True))
        await trio.sleep(10)
        swarm.world.partition(*([peer.id for peer in side] for side in sides))

        for peer in sides[0]:
            peer.hung = False
        await swarm.until(lambda: mean_steps(sides[0]) >= args.behind, math.inf)
        for peer in sides[1]:
            peer.hung = False

        def now() -> list[float]:
            return [loss(side[0].engine.common_parameters()) for side in sides]

        def apart() -> float:
            one, other = (side[0].engine.common_parameters() for side in sides)
            return float(torch.dist(one, other) / one.norm())

        curve, walled, at = [], True, args.apart - 10 * args.every
        while at < args.steps:
            await swarm.until(lambda at=at: mean_steps(sides[0]) >= at, math.inf)
            if walled and at >= args.apart:
                walled = False
                swarm.world.heal()
            curve.append((at - args.apart, *now(), apart()))
            at += args.every
        rows = np.array(curve)
        met_at = int((rows[:, 0] <= 0).sum())
        rises = rows[:, 1:3] / np.minimum.accumulate(rows[:, 1:3]) - 1
        rates = [event.fields["rate"] for peer in swarm.living() for event in peer.events_named("sync.done")]
        return {
            "before": rows[met_at - 1, 1:3].tolist(),
            "rise": rises[met_at:].max(0).tolist(),
            "after": rows[-1, 1:3].tolist(),
            "apart": rows[[met_at - 1, -1], 3].tolist(),
            "n_syncs": len(rates) // 2,
            "mean_rate": statistics.fmean(rates) if rates else None,
            "curve": curve,
            "cpu_s": round(time.process_time() - began, 1),
        }


def draw(found: dict[str, dict], path: Path) -> None:
    """Losses of both regions, and how far they are apart, over steps since the wall fell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), dpi=140, sharex=True, height_ratios=(2, 1))
    for i, (key, made) in enumerate(found.items()):
        color = f"C{i}"
        steps, one, other, apart = zip(*made["curve"], strict=True)
        rule, fields = key.split()[0], dict(part.split("=") for part in key.split()[1:])
        label = f"{rule}, apart for {fields['apart']}, behind by {fields['behind']}, seed {fields['seed']}"
        above.plot(steps, one, color=color, label=label)
        above.plot(steps, other, color=color, linestyle=":")
        below.plot(steps, apart, color=color)
    above.set(ylabel="validation loss (nats per byte)")
    above.legend(frameon=False, fontsize=7)
    below.set(xlabel="steps since they can reach each other", ylabel="distance, of the norm", ylim=(0, None))
    for ax in (above, below):
        ax.axvline(0, color="#888888", linewidth=0.8)
        ax.grid(color="#e6e6e6")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["elastic"], metavar="RULE[:FIELD=VALUE,...]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--peers", type=int, default=1, help="at each of the two places")
    parser.add_argument("--apart", type=int, default=500, help="steps of the first region, when they first sync")
    parser.add_argument("--behind", type=int, default=0, help="steps that the second has made less")
    parser.add_argument("--after", type=int, default=300, help="further steps")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--batch", type=int, default=4, help="windows per peer and step")
    parser.add_argument("--step-s", type=float, default=0.02, help="virtual seconds per step")
    parser.add_argument("--link", default="cable", help="as legion-peer --netem has it")
    parser.add_argument("--links", default="cable", help="settings of the run, as in benchmarks/regions.py")
    parser.add_argument("--lr", type=float, help="another rate")
    parser.add_argument("--out", type=Path, default=Path("reunion"), help="written: OUT.json and .png")
    args = parser.parse_args()
    args.scale = 1.0
    torch.set_num_threads(1)
    texts = tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())
    kept = args.out.with_suffix(".json")
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for run in args.runs:
        for seed in args.seeds:
            key = " ".join([run, *(f"{field}={getattr(args, field)}" for field in FIELDS), f"seed={seed}"])
            if key not in found:
                found[key] = trio.run(reunite, run, args, texts, seed, clock=MockClock(autojump_threshold=0))
                kept.write_text(json.dumps(found))
            print(key, json.dumps({field: value for field, value in found[key].items() if field != "curve"}), flush=True)
    draw(found, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
