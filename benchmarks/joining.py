"""What joining takes, and what it costs the others.

    python benchmarks/joining.py donors --preset m --upload 50mbit
    python benchmarks/joining.py crowd
    python benchmarks/joining.py stay
    python benchmarks/joining.py crowd-real
    python benchmarks/joining.py ramp

donors: How long a newcomer takes to fetch the model, from one, two, or four donors with narrow links. Donors are processes of
their own that hold the run's model and do not train; each may send `--upload` and no more. Measured in the joining process, from
where imports are done to where it holds every shard, verified, and could make its first step.

crowd: How much twenty newcomers at once slow those who train. The real engine in virtual time: four peers train, each sends 10
Mbit/s and no more, of which what training sends takes a quarter or half. Rounds a minute while all twenty fetch the model of
a quarter of a million parameters, to rounds a minute before. `unbounded`: as it would be if shards were given to everybody who
asks, at once, and as soon as anything else.

stay: The same, and the newcomers stay: they train as well, or only follow and own nothing. Four have trained for four minutes.
Rounds a minute, as the versions of the four rise and as their pushes are taken in, whichever is less, relative to before: until
all have joined, and in the minute after; and how many versions the newcomers are behind at its end. Also over home connections of
cable (20 Mbit/s up, 250 down). `--equals`: as it would be if newcomers went first like those who train already.

crowd-real: Processes over loopback: four train a small model, each sends `--upload` and no more; then others come at once, each a
process of its own: newcomers that train as well, or as many that only compute the same and join nothing, for all share the cores.

ramp: The loss of the common model after newcomers came whose Adam has cold moments, with and without the ramp of their weight.
The real engine in virtual time; the task of benchmarks/churn.py.
"""

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import PeerId
from legion_p2p.core.profiles import CABLE

AIM = "four donors in at most a third of the time of one"
CROWD_AIM = "at least 0.8"
NUMEL, UP_BYTES_S, SHARD = 1 << 18, 1.25e6, 1 << 15
REAL_SIDE = 512  # of the matrix that is trained over loopback: as many parameters


def worker(address: str, args: argparse.Namespace) -> None:
    import torch

    import legion_p2p as legion
    from legion_p2p.train.gpt import GPT

    importlib.import_module("legion_p2p.net.host")  # what a peer needs beside torch
    torch.set_num_threads(1)
    model = GPT.from_preset(args.preset, torch.Generator().manual_seed(0 if address == "found" else 1))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run, contacts = (legion.NewRun("joining"), ()) if address == "found" else ("joining", (address,))
    peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", limits=legion.Limits(upload="" if args.unlimited else args.upload))
    began = time.perf_counter()
    with legion.Optimizer(inner, model, run, initial_peers=contacts, peer=peer) as opt:
        joined_s = time.perf_counter() - began
        status = opt.status
        where = next(a for a in status.addresses if "127.0.0.1" in a)
        print(json.dumps({"address": where, "joined_s": joined_s, "received_bytes": status.received_bytes}), flush=True)
        sys.stdin.readline()


def start(address: str, args: argparse.Namespace, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", address, "--preset", args.preset, "--upload", args.upload, *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def told(process: subprocess.Popen[str]) -> dict:
    return json.loads(process.stdout.readline())


def measure(n_donors: int, args: argparse.Namespace) -> dict:
    donors = [start("found", args)]
    address = told(donors[0])["address"]
    for _ in range(n_donors - 1):
        donors.append(start(address, args))
        told(donors[-1])
    rows = []
    for _ in range(args.repeat):
        newcomer = start(address, args, "--unlimited")
        rows.append(told(newcomer))
        end(newcomer)
    for donor in donors:
        end(donor)
    return {"donors": n_donors, "joined_s": statistics.median(r["joined_s"] for r in rows), "MB": rows[0]["received_bytes"] / 1e6}


def end(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait(60)


@contextmanager
def unbounded() -> Iterator[None]:
    """Everything is small enough to be given at once."""
    from legion_p2p.services import upload_slots
    from legion_p2p.services.checkpoint import fetch, provider_scheduler

    before = upload_slots.FREE_BYTES, provider_scheduler.PER_PROVIDER
    upload_slots.FREE_BYTES, provider_scheduler.PER_PROVIDER, fetch.PER_PROVIDER = 1 << 40, 8, 8
    try:
        yield
    finally:
        upload_slots.FREE_BYTES, provider_scheduler.PER_PROVIDER = before
        fetch.PER_PROVIDER = before[1]


async def crowd(load: float, n_newcomers: int) -> dict[str, float]:
    """Rounds a minute before and while newcomers fetch; `load`: the share of the connections that training takes."""
    import trio

    from legion_p2p.core.round_spec import RoundSpec
    from legion_p2p.sim.network import World
    from legion_p2p.sim.swarm import Swarm

    # Of int8, a member sends 3/4 of the model in pushes, and as an owner 1/4 of it to three others.
    step_s = 1.5 * NUMEL / UP_BYTES_S / load / 10
    spec = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=SHARD)
    async with Swarm(numel=NUMEL, round=spec, step_s=step_s, world=World(delay_s=0.02, up_bytes_s=UP_BYTES_S)) as swarm:
        trainers = [await swarm.add(f"p{i}") for i in range(4)]

        def rounds() -> float:
            return sum(sum(peer.versions()) for peer in trainers) / len(trainers) / trainers[0].engine.plan.n_shards

        await trio.sleep(30 * step_s)
        began, before = trio.current_time(), rounds()
        await trio.sleep(60 * step_s)
        alone = 60 * (rounds() - before) / (trio.current_time() - began)
        began, before = trio.current_time(), rounds()
        joining = {f"n{i}": swarm.start(f"n{i}", training=False, weight=0) for i in range(n_newcomers)}
        first_s = 0.0
        while joining:
            await trio.sleep(0.1)
            done = [n for n, p in joining.items() if len(p.events_named("shard.fetched")) >= trainers[0].engine.plan.n_shards]
            for name in done:  # as a member it would be sent updates: that is not the cost of joining
                first_s = first_s or trio.current_time() - began
                await swarm.kill(name)
                del joining[name]
        took_s = trio.current_time() - began
        crowded = 60 * (rounds() - before) / took_s
        return {"alone": alone, "with newcomers": crowded, "ratio": crowded / alone, "first_s": first_s, "all_s": took_s}


class EverybodyHas(dict[PeerId, LinkProfile]):
    """The same access link for all."""

    def __missing__(self, peer: PeerId) -> LinkProfile:
        return CABLE


@contextmanager
def equals() -> Iterator[None]:
    """Everybody goes first."""
    from legion_p2p.core import contribution

    before, contribution.FEW_ROUNDS = contribution.FEW_ROUNDS, 1 << 40
    try:
        yield
    finally:
        contribution.FEW_ROUNDS = before


async def stay(load: float, n_newcomers: int, n_shards: int, training: bool, cable: bool) -> dict[str, float]:
    """Rounds a minute of those who trained before, relative to before: while newcomers come, and in the minute after."""
    import trio

    from legion_p2p.core.round_spec import RoundSpec
    from legion_p2p.sim.network import World
    from legion_p2p.sim.swarm import Swarm

    world = World(links=EverybodyHas()) if cable else World(delay_s=0.02, up_bytes_s=UP_BYTES_S)
    step_s = 1.5 * NUMEL / (CABLE.up_bps / 8 if cable else UP_BYTES_S) / load / 10
    spec = RoundSpec(
        local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=math.ceil(NUMEL / n_shards)
    )
    async with Swarm(numel=NUMEL, round=spec, step_s=step_s, world=world) as swarm:
        trainers = [await swarm.add(f"p{i}") for i in range(4)]

        def made() -> tuple[float, float]:
            """Rounds so far: by versions, and by pushes."""
            versions = sum(sum(peer.versions()) for peer in trainers)
            pushes = sum(replica.life.push.n_packed for peer in trainers for replica in peer.engine.shards.replicas.values())
            return versions / 4 / n_shards, pushes / 4 / n_shards

        async def rounds_a_minute(condition: Callable[[], bool]) -> float:
            began, before = trio.current_time(), made()
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.5)
            return min(60 * (b - a) / (trio.current_time() - began) for a, b in zip(before, made(), strict=True))

        def after(seconds: float) -> Callable[[], bool]:
            until = trio.current_time() + seconds
            return lambda: trio.current_time() >= until

        await trio.sleep(210)
        alone = await rounds_a_minute(after(30))
        began = trio.current_time()
        newcomers = [swarm.start(f"n{i}", training=training, weight=float(training)) for i in range(n_newcomers)]
        too_long = after(120)
        coming = await rounds_a_minute(lambda: all(p.joined.is_set() for p in newcomers) or too_long())
        took_s = trio.current_time() - began
        staying = await rounds_a_minute(after(60))
        newest = [max(versions) for versions in zip(*(p.versions() for p in trainers), strict=True)]
        behind = [newest[s] - v for p in newcomers if p.joined.is_set() for s, v in enumerate(p.versions())]
        return {
            "alone": alone, "coming": coming / alone, "staying": staying / alone, "all_s": took_s,
            "joined": sum(p.joined.is_set() for p in newcomers), "behind": statistics.mean(behind) if behind else math.nan,
        }  # fmt: skip


def stays(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    cases = (
        (0.5, 8, True, False), (0.5, 8, False, False), (0.25, 8, True, False), (0.25, 8, False, False),
        (0.5, 48, True, False), (0.25, 48, True, False), (0.5, 8, True, True), (0.25, 8, False, True),
    )  # fmt: skip
    for load, n_shards, training, cable in cases if args.cases is None else [cases[i] for i in args.cases]:
        case = {"load": load, "shards": n_shards, "newcomers train": training, "cable": cable, "equals": args.equals}
        with equals() if args.equals else nullcontext():
            rows.append(shown({**case, **run(stay, load, args.newcomers, n_shards, training, cable)}))
    return {"newcomers": args.newcomers, "rows": rows, "aim": CROWD_AIM}


def crowds(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for load in (0.5, 0.25):
        rows.append(shown({"load": load, **run(crowd, load, args.newcomers)}))
        with unbounded():
            rows.append(shown({"load": load, "unbounded": True, **run(crowd, load, args.newcomers)}))
    return {"newcomers": args.newcomers, "rows": rows, "aim": CROWD_AIM}


def crowd_worker(address: str, args: argparse.Namespace) -> None:
    """Trains; at each line from outside tells its rounds. `idle`: by itself."""
    import torch

    import legion_p2p as legion

    importlib.import_module("legion_p2p.net.host")
    torch.set_num_threads(1)
    model = torch.nn.Linear(REAL_SIDE, REAL_SIDE, bias=False)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    rounds = {"local_steps": 10, "push_codec": "int8", "update_codec": "int8", "shard_elements": SHARD}
    done = threading.Event()

    def train(step: Callable[[], object]) -> None:
        while not done.is_set():
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            step()
            done.wait(args.step_s)

    if address == "idle":
        print(json.dumps({}), flush=True)
        training = threading.Thread(target=train, args=(inner.step,))
        training.start()
        sys.stdin.readline()
    else:
        new_run = legion.NewRun("crowd", rounds=legion.Rounds(**rounds))
        run, contacts = (new_run, ()) if address == "found" else ("crowd", (address,))
        peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", limits=legion.Limits(upload="" if args.unlimited else args.upload))
        with legion.Optimizer(inner, model, run, initial_peers=contacts, peer=peer) as opt:
            where = next(a for a in opt.status.addresses if "127.0.0.1" in a)
            print(json.dumps({"address": where}), flush=True)
            training = threading.Thread(target=train, args=(opt.step,))
            training.start()
            while sys.stdin.readline().strip() == "rounds":
                print(json.dumps({"rounds": statistics.mean(shard.version for shard in opt.status.shards)}), flush=True)
            done.set()
            training.join()
    done.set()
    training.join()


def crowd_real(args: argparse.Namespace) -> dict[str, Any]:
    rows = [shown({"others": what, **measure_crowd(what, args)}) for what in ("idle", "newcomers")]
    return {"upload": args.upload, "step_s": args.step_s, "newcomers": args.newcomers, "rows": rows}


def measure_crowd(what: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds a minute of four that train, before and after others came; and how busy the cores were, all processes together."""
    import psutil

    more = ("--crowd", "--step-s", str(args.step_s))
    trainers = [start("found", args, *more)]
    address = told(trainers[0])["address"]
    for _ in range(3):
        trainers.append(start(address, args, *more))
        told(trainers[-1])

    others: list[subprocess.Popen[str]] = []
    busy: list[float] = []

    def cpu_s() -> float:
        return sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in (*trainers, *others))

    def rounds_a_minute(seconds: float) -> float:
        def rounds() -> float:
            for process in trainers:
                process.stdin.write("rounds\n")
                process.stdin.flush()
            return statistics.mean(told(process)["rounds"] for process in trainers)

        began, before, cpu_before = time.perf_counter(), rounds(), cpu_s()
        time.sleep(seconds)
        made, took_s = rounds() - before, time.perf_counter() - began
        busy.append(round((cpu_s() - cpu_before) / took_s / (psutil.cpu_count() or 1), 2))
        return 60 * made / took_s

    time.sleep(args.before_s)
    alone = rounds_a_minute(30)
    others += [start("idle" if what == "idle" else address, args, *more) for _ in range(args.newcomers)]
    coming = rounds_a_minute(30)
    for process in others:
        told(process)
    staying = rounds_a_minute(30)
    for process in (*others, *trainers):
        end(process)
    return {"alone": alone, "coming": coming / alone, "staying": staying / alone, "cores busy": busy}


async def after_a_join(seed: int, ramp_pushes: int) -> dict[str, float]:
    """Four train; when the loss hardly falls any more, four come at once. Losses relative to just before."""
    import trio
    from churn import NUMEL, ROUND, Task

    from legion_p2p.config import PeerConfig
    from legion_p2p.core.round import RoundConfig
    from legion_p2p.core.round_spec import RoundSpec
    from legion_p2p.sim.swarm import Swarm
    from legion_p2p.sim.swarm_peer import SimPeer

    import torch  # isort: skip

    task, adams = Task(seed), {}

    def step(peer: SimPeer) -> None:
        adam = adams.setdefault(peer.id, torch.optim.Adam([peer.theta], lr=0.01))
        loss = task.batch_loss(peer.theta)
        adam.zero_grad()
        loss.backward()
        adam.step()

    config = PeerConfig(rounds=RoundConfig(ramp_pushes=ramp_pushes))
    spec = RoundSpec(local_steps=10, **ROUND)
    async with Swarm(seed=seed, numel=NUMEL, start=task.start, local_step=step, round=spec, step_s=0.5, config=config) as swarm:
        old = [await swarm.add(f"p{i}") for i in range(4)]

        async def losses(n: int) -> list[float]:
            found = []
            for _ in range(n):
                await trio.sleep(2.5)
                found.append(task.loss(old[0].engine.common_parameters()))
            return found

        await trio.sleep(120)
        before = statistics.mean(await losses(8))
        for i in range(4):
            swarm.start(f"n{i}")
        after = [loss / before for loss in await losses(24)]
        return {"worst": max(after), "first half minute": statistics.mean(after[:12]), "second": statistics.mean(after[12:])}


def ramps(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for ramp_pushes in (0, 4):
        runs = [shown(run(after_a_join, seed, ramp_pushes)) for seed in range(args.repeat)]
        spread = {k: [statistics.mean(r[k] for r in runs), statistics.stdev(r[k] for r in runs)] for k in runs[0]}
        rows.append({"ramp_pushes": ramp_pushes, **spread})
    return {"seeds": args.repeat, "loss relative to before (mean, standard deviation)": rows}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """As it comes: all of it takes minutes."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def run(what: Any, *args: Any) -> Any:
    import trio
    from trio.testing import MockClock

    return trio.run(what, *args, clock=MockClock(autojump_threshold=0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["donors", "crowd", "stay", "crowd-real", "ramp"], default="donors")
    parser.add_argument("--newcomers", type=int, default=20)
    parser.add_argument("--donors", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--preset", default="m")
    parser.add_argument("--upload", default="50mbit", help="of each donor; of each that trains")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--equals", action="store_true", help="with stay: nobody goes first")
    parser.add_argument("--step-s", type=float, default=0.2, help="with crowd-real: seconds between local steps")
    parser.add_argument("--before-s", type=float, default=120.0, help="with crowd-real: seconds of training before others come")
    parser.add_argument("--cases", type=int, nargs="+", help="with stay: only these of its cases, from 0 on")
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--worker")
    parser.add_argument("--unlimited", action="store_true")
    args = parser.parse_args()
    if args.worker is not None:
        (crowd_worker if args.crowd else worker)(args.worker, args)
        return 0
    if args.part != "donors":
        part = {"crowd": crowds, "stay": stays, "crowd-real": crowd_real, "ramp": ramps}[args.part]
        print(json.dumps(part(args), indent=2))
        return 0
    rows = [measure(n, args) for n in args.donors]
    for row in rows:
        row["of_one_donor"] = row["joined_s"] / rows[0]["joined_s"]
    print(json.dumps({"upload": args.upload, "preset": args.preset, "rows": rows, "aim": AIM}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
