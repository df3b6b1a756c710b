"""What regions cost and gain: the reference work on peers at two places, 5 ms inside, 120 ms across, home links.

    python benchmarks/regions.py --peers 2 --steps 1000 --runs near flat elastic center nesterov
    python benchmarks/regions.py --peers 2 --steps 200 --runs elastic elastic:sync_every=1,moving_rate=.5

The real engine and services over the network of legion_p2p.sim, real training of the built-in GPT `xxs` on the text and with the
optimizers of benchmarks/convergence.py; only time is virtual: a step takes `--step-s`, arithmetic of the swarm nothing. So every
figure repeats, whatever else the machine does. Every finished run is kept in the JSON, and not repeated.

A run is a name, and after a colon fields of RoundSpec that differ from what `--links` gives for a new run:

| run | what |
|---|---|
| near | all peers at one place, no regions: what the distance costs nobody |
| flat | two places, no regions |
| elastic, center, nesterov | two places, each a region, which sync by that rule |
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import torch
import trio
from convergence import Method, Worker, evaluate, rate
from trio.testing import MockClock

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.presets import LINKS
from legion_p2p.core.profiles import parse_link
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.run.progress import Progress
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.gpt import GPT

PLACES = ("east", "west")
WITHOUT_REGIONS = ("near", "flat")
RULES = ("elastic", "center", "nesterov")
ADAMW = {"round": {"local_steps": 5}, "inner": {"optimizer": "adamw", "learning_rate": 3e-3}}  # and int8
SETTINGS = {**LINKS, "adamw": ADAMW}
SPREAD = 0.02  # how much faster the fastest peer is than the slowest: equal ones would push at the same instant for ever
SETTLE_S = 600.0


def rounds_of(run: str, links: str) -> RoundSpec:
    """The averaging of a run that is given as NAME[:FIELD=VALUE,...]."""
    name, _, changes = run.partition(":")
    fields = dict(change.split("=") for change in changes.split(",")) if changes else {}
    known = SETTINGS[links]["round"]
    rule = {} if name in WITHOUT_REGIONS else {"sync_rule": name}
    return msgspec.convert({**known, **rule, **fields}, RoundSpec, strict=False)


class Peers:
    """The places and models of all peers, and what passes between them."""

    def __init__(self, run: str, args: argparse.Namespace, text: np.ndarray, seed: int) -> None:
        self.name = run.partition(":")[0]
        self.rounds = rounds_of(run, args.links)
        inner = SETTINGS[args.links]["inner"]
        self.lr = args.lr or inner["learning_rate"]
        self.n_steps = args.steps
        self.place = {f"{place}{i}": place for i in range(args.peers) for place in PLACES}
        method = Method(self.lr, inner["optimizer"])
        self.workers = {
            name: Worker(method, text, args.batch, seed, rank, 0, len(self.place)) for rank, name in enumerate(self.place)
        }
        self.links: dict[str, LinkProfile] = {}
        first = next(iter(self.workers.values()))
        self.swarm = Swarm(
            seed=seed, round=self.rounds, world=World(seed, links=self.links), step_s=args.step_s, start=first.view.snapshot(),
            local_step=self.local_step, model=lambda name: self.workers[name].view,
        )  # fmt: skip
        for name, place in self.place.items():
            peer = self.swarm.identity(name).peer_id
            number = 1 if self.name == "near" else 1 + PLACES.index(place)
            profile = parse_link(f"{args.link},rtt=0ms,inside=5ms,across=120ms,place={number}")
            self.links[peer] = msgspec.structs.replace(
                profile, up_bps=profile.up_bps / args.scale, down_bps=profile.down_bps / args.scale
            )
        self.passed = {"inside": 0, "across": 0}
        self.swarm.world.corrupt = self.count

    def local_step(self, peer: SimPeer) -> None:
        self.workers[peer.name].step(self.lr * rate(peer.local_trainer.steps, self.n_steps))

    def count(self, source: str, target: str, data: bytes) -> bytes:
        self.passed["inside" if self.links[source].place == self.links[target].place else "across"] += len(data)
        return data

    def first_of_each_region(self) -> list[SimPeer]:
        chosen = PLACES[:1] if self.name in WITHOUT_REGIONS else PLACES
        return [self.swarm.peers[f"{place}0"] for place in chosen]


async def train(run: str, args: argparse.Namespace, texts: tuple[np.ndarray, np.ndarray], seed: int) -> dict:
    """One run, each peer `args.steps` steps: losses over virtual time, bytes for each trained token, how rounds went."""
    peers = Peers(run, args, texts[0], seed)
    scratch = GPT.from_preset("xxs", torch.Generator().manual_seed(seed))
    into = FlatView(scratch.named_parameters())

    def loss(copies: list[torch.Tensor]) -> float:
        """Of each copy, on average."""
        losses = []
        for copy in copies:
            into.assign_slice(0, copy)
            losses.append(evaluate(scratch, texts[1]))
        return statistics.fmean(losses)

    began = time.process_time()
    async with peers.swarm as swarm:
        for i, (name, place) in enumerate(peers.place.items()):
            step_s = args.step_s * (1 + SPREAD * (i / (len(peers.place) - 1) - 0.5))
            peer = await swarm.add(name, step_s=step_s, training=False, region="" if peers.name in WITHOUT_REGIONS else place)
            peer.hung = True
        everyone = swarm.living()
        for peer in everyone:  # all are waited for from the first round on
            peer.training, peer.max_steps = True, args.steps
            peer.engine.report(Progress(step_s=peer.step_s, training=True))
        await trio.sleep(10)
        peers.passed.update(inside=0, across=0)
        started_at = trio.current_time()
        for peer in everyone:
            peer.hung = False
        curve = []
        for k in range(1, args.points):
            await swarm.until(lambda k=k: mean_steps(everyone) >= k * args.steps / args.points, math.inf)
            copy = everyone[0].engine.common_parameters()
            curve.append((round(mean_steps(everyone), 1), round(trio.current_time() - started_at, 3), loss([copy])))
        await swarm.until(lambda: all(peer.local_trainer.steps >= args.steps for peer in everyone), math.inf)
        took_s = trio.current_time() - started_at
        versions = [statistics.fmean(peer.versions()) for peer in peers.first_of_each_region()]
        await swarm.settle(SETTLE_S)
        copies = [peer.engine.common_parameters() for peer in peers.first_of_each_region()]
        validation = loss(copies)
        curve.append((args.steps, round(took_s, 3), validation))
        syncs = [event for peer in everyone for event in peer.events_named("sync.done")]
        n_refused = sum(len(peer.events_named(name)) for peer in everyone for name in ("sync.refused", "sync.failed"))
        tokens = len(everyone) * args.steps * args.batch * 64
        return {
            "validation": validation,
            "validation_of_the_mean": loss([torch.stack(copies).mean(0)]),
            "apart": float(torch.dist(copies[0], copies[-1]) / copies[0].norm()),
            "took_s": round(took_s, 3),
            "steps_per_round": round(args.steps / statistics.fmean(versions), 2),
            "blocked": round(statistics.fmean(peer.blocked_s for peer in everyone) / took_s, 4),
            "bytes_inside_per_token": round(peers.passed["inside"] / tokens, 3),
            "bytes_across_per_token": round(peers.passed["across"] / tokens, 3),
            "n_syncs": len(syncs) // 2,
            "n_meetings_failed": n_refused,
            "mean_rate": round(statistics.fmean(e.fields["rate"] for e in syncs), 3) if syncs else None,
            "curve": curve,
            "cpu_s": round(time.process_time() - began, 1),
        }  # fmt: skip


def mean_steps(peers: list[SimPeer]) -> float:
    return statistics.fmean(peer.local_trainer.steps for peer in peers)


def reached_s(curve: list, target: float) -> float | None:
    """When the loss first was at `target` or below, between two points that were measured."""
    if curve[0][2] <= target:
        return curve[0][1]
    for (_, before_s, a), (_, after_s, b) in pairwise(curve):
        if b <= target:
            return before_s + (after_s - before_s) * (a - target) / (a - b)
    return None


def compared(mine: Mapping[int, dict], reference: Mapping[int, dict]) -> tuple[float | None, float | None]:
    """Over the seeds of both: how far the loss is above, as a share, and how much sooner the worse of both losses was reached."""
    seeds = mine.keys() & reference.keys()
    if not seeds:
        return None, None
    above = statistics.fmean(mine[s]["validation"] / reference[s]["validation"] - 1 for s in seeds)
    sooner = []
    for s in seeds:
        target = max(mine[s]["validation"], reference[s]["validation"])
        here, there = reached_s(mine[s]["curve"], target), reached_s(reference[s]["curve"], target)
        sooner.append(there / here if here and there else math.nan)
    return above, statistics.fmean(sooner)


def key(run: str, args: argparse.Namespace, seed: int) -> str:
    fields = ("peers", "steps", "batch", "step_s", "scale", "link", "links", "lr")
    return " ".join([run, *(f"{field}={getattr(args, field)}" for field in fields), f"seed={seed}"])


def table(runs: Mapping[str, dict], args: argparse.Namespace) -> str:
    found = {run: {s: runs[key(run, args, s)] for s in args.seeds if key(run, args, s) in runs} for run in args.runs}
    lines = [
        "| run | seeds | loss | to near | to flat | of the mean | sooner than flat | steps/round | blocked | inside | across |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, mine in found.items():
        if not mine:
            continue
        mean = {
            field: statistics.fmean(r[field] for r in mine.values())
            for field in next(iter(mine.values()))
            if _is_number(mine, field)
        }
        near, _ = compared(mine, found.get("near", {}))
        flat, sooner = compared(mine, found.get("flat", {}))
        lines.append(
            f"| {run} | {len(mine)} | {mean['validation']:.4f} | {_percent(near)} | {_percent(flat)} "
            f"| {mean['validation_of_the_mean']:.4f} | {_times(sooner)} | {mean['steps_per_round']:.1f} "
            f"| {100 * mean['blocked']:.0f} % | {mean['bytes_inside_per_token']:.1f} | {mean['bytes_across_per_token']:.1f} |"
        )
    return "\n".join(lines)


def draw(runs: Mapping[str, dict], args: argparse.Namespace, path: Path) -> None:
    """Loss over virtual time, and at the end over what passes between the places."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), dpi=140)
    for run in args.runs:
        made = next((runs[k] for seed in args.seeds if (k := key(run, args, seed)) in runs), None)
        if made is None:
            continue
        label = run.replace(",", "\n").replace(":", "\n")
        (line,) = left.plot([s for _, s, _ in made["curve"]], [x for *_, x in made["curve"]], label=label)
        if not run.startswith("near"):
            right.plot(made["bytes_across_per_token"], made["validation"], "o", color=line.get_color())
            at = (made["bytes_across_per_token"], made["validation"])
            right.annotate(label, at, (6, 0), textcoords="offset points", fontsize=7, va="center")
    left.set(xlabel="virtual seconds", ylabel="validation loss (nats per byte)")
    left.legend(frameon=False, fontsize=7, loc="upper right")
    right.set(xlabel="bytes between the places, per token", ylabel="validation loss at the end")
    right.margins(0.4)
    for ax in (left, right):
        ax.grid(color="#e6e6e6")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def _is_number(runs: Mapping[int, dict], field: str) -> bool:
    return all(isinstance(run[field], int | float) for run in runs.values())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f} %"


def _times(factor: float | None) -> str:
    return "" if factor is None else f"{factor:.2f}x"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=[*WITHOUT_REGIONS, *RULES], metavar="NAME[:FIELD=VALUE,...]")
    parser.add_argument("--peers", type=int, default=2, help="at each of the two places")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4, help="windows per peer and step")
    parser.add_argument("--step-s", type=float, default=0.02, help="virtual seconds per step")
    parser.add_argument("--link", default="cable", help="as legion-peer --netem has it")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="links are this many times slower: for a model so many times larger"
    )
    parser.add_argument("--links", choices=SETTINGS, default="cable", help="settings of the run")
    parser.add_argument("--points", type=int, default=10, help="at which the loss is measured on the way and at the end")
    parser.add_argument("--lr", type=float, help="another rate, to sweep it")
    parser.add_argument("--out", type=Path, default=Path("regions"), help="written: OUT.json and .png")
    args = parser.parse_args()
    torch.set_num_threads(1)

    texts = tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())
    kept = args.out.with_suffix(".json")
    runs = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for run in args.runs:
            if key(run, args, seed) in runs:
                continue
            made = trio.run(train, run, args, texts, seed, clock=MockClock(autojump_threshold=0))
            runs[key(run, args, seed)] = made
            kept.write_text(json.dumps(runs))
            brief = {field: value for field, value in made.items() if field != "curve"}
            print(f"{run} seed {seed}: {json.dumps(brief)}", file=sys.stderr, flush=True)
    print(table(runs, args))
    draw(runs, args, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
