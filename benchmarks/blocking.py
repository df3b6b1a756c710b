"""The share of wall time that `opt.step()` spends on the swarm instead of training, with several peers on one machine.

    python benchmarks/blocking.py --peers 4 --seconds 40
    python benchmarks/blocking.py --netem up=20mbit,down=100mbit,rtt=50ms --links cable
    python benchmarks/blocking.py --elements 30800000 --step-ms 30 --netem up=50mbit,down=50mbit,rtt=10ms --links auto

Measured by the optimizer itself: all time inside step() after the inner optimizer's own step. The same loop without a swarm, as
many processes at once, gives the steps per second that the machine has left for training, so that what the network's thread takes
from the training thread is seen as well.

With `--elements` and `--step-ms` the model only has a size, and a step only takes a time, as it does where a GPU computes it: the
process sleeps, and moves one of its matrices a little. Utilization is then the part of the time that such steps took, which is
what tables of DiLoCo over simulated links give for 50 Mbit/s to 1 Gbit/s. Four such peers need some 4 GB of memory and cores that
are idle: where the processors are the limit, they are what is measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

KNOWN = {
    "hivemind": {"blocked_fraction": 0.60},
    "SparseLoCo, large models, 110/500 Mbit/s": {"blocked_fraction": 0.055},
    "aim": {"blocked_fraction": 0.05, "over a home link": 0.10},
}
PUBLISHED = {"DiLoCo in fp32, 32 and 128 local steps": {"50 Mbit/s": (0.024, 0.116), "200 Mbit/s": (0.10, 0.36)}}


SIDE = 1024  # of a matrix of a model that only has a size


def sized(n_elements: int):
    """A model of so many parameters, in matrices, and an optimizer that moves one of them a little in each step."""
    import torch

    class Walk(torch.optim.Optimizer):
        def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
            super().__init__(matrices, {})
            self.n_steps = 0
            self.noise = 1e-3 * torch.randn(SIDE, SIDE, dtype=torch.float32)

        @torch.no_grad()
        def step(self, closure=None) -> None:
            matrices = self.param_groups[0]["params"]
            one = matrices[self.n_steps % len(matrices)]
            one.add_(self.noise[: len(one)])
            self.n_steps += 1

    n_rows = -(-n_elements // SIDE)
    rows = [min(SIDE, n_rows - start) for start in range(0, n_rows, SIDE)]
    model = torch.nn.ParameterList(torch.nn.Parameter(0.02 * torch.randn(n, SIDE, dtype=torch.float32)) for n in rows)
    return model, Walk(list(model))


def emulate(opt, step_s: float, seconds: float) -> float:
    """Steps per second of `step_s` each, and whatever `opt.step()` takes beside that."""
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        time.sleep(step_s)
        opt.step()
        steps += 1
    return steps / (time.perf_counter() - began)


def train(opt, model, seconds: float) -> float:
    """Steps per second."""
    import torch

    generator = torch.Generator().manual_seed(0)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        x = torch.randint(0, 256, (4, 65), generator=generator)
        _, loss = model(x[:, :-1], x[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad()
        steps += 1
    return steps / (time.perf_counter() - began)


def worker(address: str, args: argparse.Namespace) -> None:
    import torch

    from legion_p2p.core.presets import LINKS
    from legion_p2p.core.run import InnerSpec
    from legion_p2p.train.gpt import GPT
    from legion_p2p.train.inner import inner_optimizer

    torch.set_num_threads(1)
    settings = LINKS[args.links] if args.links else {"round": {"local_steps": args.local_steps}, "inner": {"learning_rate": 1e-3}}
    if args.elements:
        model, inner = sized(args.elements)
    else:
        model = GPT.from_preset(args.preset, torch.Generator().manual_seed(0))
        inner = inner_optimizer(InnerSpec(**settings["inner"]), model)

    def make_steps(opt) -> float:
        return emulate(opt, args.step_ms / 1e3, args.seconds) if args.step_ms else train(opt, model, args.seconds)

    if address == "alone":
        sys.stdin.readline()
        print(json.dumps({"steps_per_s": make_steps(inner)}), flush=True)
        return
    import legion_p2p as legion

    new_run = legion.NewRun("blocking", rounds=legion.Rounds(**settings["round"]))
    run, contacts = (new_run, ()) if address == "found" else ("blocking", (address,))
    peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", limits=legion.Limits(netem=args.netem))
    opt = legion.Optimizer(inner, model, run, initial_peers=contacts, peer=peer)
    if address == "found":
        print(json.dumps({"address": next(a for a in opt.status.addresses if "127.0.0.1" in a)}), flush=True)
    opt.wait_for_members(args.peers)
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    before, blocked, then = time.perf_counter(), opt.blocked_s, opt.status
    rate = make_steps(opt)
    wall = time.perf_counter() - before
    now = opt.status
    n_rounds = (now.rounds - then.rounds) / len(now.shards)
    row = {
        "steps_per_s": rate,
        "blocked_fraction": (opt.blocked_s - blocked) / wall,
        "round_period_s": wall / max(1, n_rounds),
        "steps_per_round": rate * wall / max(1, n_rounds),
        "averaged_fraction": now.last_round.averaged_fraction,
        "sent_mbit_s": 8e-6 * (now.sent_bytes - then.sent_bytes) / wall,
        "push_codec": now.push_codec,
        "update_codec": now.update_codec,
        "local_steps": now.local_steps,
    }
    if args.step_ms:
        row["utilization"] = rate * args.step_ms / 1e3
    print(json.dumps(row), flush=True)
    opt.close()


def start(address: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", address]
    for name in ("peers", "seconds", "preset", "local_steps", "netem", "links", "elements", "step_ms"):
        command += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def together(workers: list[subprocess.Popen[str]]) -> list[dict]:
    for one in workers:
        one.stdin.write("go\n")
        one.stdin.flush()
    rows = [json.loads(one.stdout.readline()) for one in workers]
    for one in workers:
        one.wait(60)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--preset", default="xxs")
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--netem", default="", help="link that each peer has, such as up=20mbit,down=100mbit,rtt=50ms")
    parser.add_argument("--links", default="", help="settings for such links (core.presets), instead of int8 and AdamW")
    parser.add_argument(
        "--elements", type=int, default=0, help="parameters of a model that only has a size, in place of --preset"
    )
    parser.add_argument("--step-ms", type=float, default=0.0, help="what a step takes that a device computes; needs --elements")
    parser.add_argument("--worker")
    args = parser.parse_args()
    if bool(args.elements) != bool(args.step_ms):
        parser.error("--elements and --step-ms go together")
    if args.worker is not None:
        worker(args.worker, args)
        return 0
    alone = [start("alone", args) for _ in range(args.peers)]
    time.sleep(8)
    alone_rows = together(alone)
    founder = start("found", args)
    address = json.loads(founder.stdout.readline())["address"]
    peers = [founder, *(start(address, args) for _ in range(args.peers - 1))]
    for peer in peers:
        json.loads(peer.stdout.readline())
    rows = together(peers)
    rate_alone = statistics.mean(row["steps_per_s"] for row in alone_rows)
    rate = statistics.mean(row["steps_per_s"] for row in rows)
    report = {
        "peers": args.peers,
        "blocked_fraction": {
            "mean": statistics.mean(r["blocked_fraction"] for r in rows),
            "max": max(r["blocked_fraction"] for r in rows),
        },
        "round_period_s": statistics.median(row["round_period_s"] for row in rows),
        "steps_per_s": {"swarm": rate, "without": rate_alone, "ratio": rate / rate_alone},
        "rows": rows,
        "known": KNOWN,
    }
    if args.step_ms:
        report["utilization"] = {
            "mean": statistics.mean(row["utilization"] for row in rows),
            "steps_per_round": statistics.mean(row["steps_per_round"] for row in rows),
            "published": PUBLISHED,
        }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
