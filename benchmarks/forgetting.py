"""What a run loses when all of its peers are killed at once: what compression had left over, and the inner optimizers' state.

    python benchmarks/forgetting.py --seeds 0 1 2 --record docs/records/forgetting.md

The swarm of benchmarks/convergence.py trains, is stopped after a round, and goes on with something forgotten: one row each. The
learning rate is at its full height there, which is when most is left over. Shown is by how much the validation loss of the common
model is above that of the swarm that forgot nothing, so many rounds later; same batches, same schedule.
"""

import argparse
import copy
import datetime
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from convergence import METHODS, N_WORKERS, Method, Swarm, Worker, evaluate, rate

from legion_p2p.core.plan import plan_for
from legion_p2p.tensor.outer import OuterState
from legion_p2p.train.corpus import stdlib_text

OF = {
    "muon-top512-lean": METHODS["muon-top512-lean"],
    "muon-top128": METHODS["muon-top128"],
    "diloco-top512": Method(3e-3, local_steps=5, push="topk512-2bit", update="topk512-2bit", outer="nesterov", outer_lr=0.7,
                            outer_momentum=0.5),
}  # fmt: skip
AFTER_ROUNDS = (0, 2, 5, 10, 20)


def forget_owners(swarm):
    swarm.residuals = [None] * len(swarm.residuals)


def forget_momentum(swarm):
    swarm.outer = [OuterState() for _ in swarm.outer]


def forget_members(swarm):
    for worker in swarm.workers:
        worker.residuals = [None] * len(worker.residuals)


def forget_inner(swarm):
    """The moments of the inner optimizers: no checkpoint has them, for each peer has its own."""
    for worker in swarm.workers:
        for state in worker.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()


def keep_as_int8(swarm):
    """The owners' residuals, written with 8 bits and read back."""
    from legion_p2p.tensor import codec

    int8 = codec.get("int8")
    swarm.residuals = [None if r is None else int8.decode(int8.encode(r), len(r)) for r in swarm.residuals]


FORGET = {
    "nothing": (),
    "the owners' residuals": (forget_owners,),
    "the same, kept with 8 bits": (keep_as_int8,),
    "the outer momentum": (forget_momentum,),
    "the members' residuals": (forget_members,),
    "all residuals and the outer momentum": (forget_owners, forget_momentum, forget_members),
    "the inner optimizers' state": (forget_inner,),
    "all of it": (forget_owners, forget_momentum, forget_members, forget_inner),
}


def steps(swarm, method, first, n, total):
    for step in range(first, first + n):
        for worker in swarm.workers:
            worker.step(method.lr * rate(step, total))
        if (step + 1) % method.local_steps == 0:
            swarm.exchange(dense=False)


def norm(parts):
    return sum(float(part.square().sum()) for part in parts if part is not None) ** 0.5


def measure(method, texts, n_before, total, seed):
    """What is forgotten: the losses after so many rounds. And how large what is left over is, beside the update of one round."""
    training, validation = texts
    n_shards = plan_for(252_384).n_shards
    workers = [Worker(method, training, 4, seed, rank, n_shards) for rank in range(N_WORKERS)]
    swarm = Swarm(method, workers)
    steps(swarm, method, 0, n_before - method.local_steps, total)
    before = swarm.reference.clone()
    steps(swarm, method, n_before - method.local_steps, method.local_steps, total)
    moved = norm([swarm.reference - before])
    sizes = (norm(swarm.residuals) / moved, norm(workers[0].residuals) / moved)
    losses = {}
    for name, changes in FORGET.items():
        if name == "the outer momentum" and method.outer == "average":
            continue
        branch = copy.deepcopy(swarm)
        for change in changes:
            change(branch)
        at, losses[name] = n_before, []
        for rounds, more in zip(AFTER_ROUNDS, np.diff([0, *AFTER_ROUNDS]), strict=True):
            steps(branch, method, at, int(more) * method.local_steps, total)
            at = n_before + rounds * method.local_steps
            losses[name].append(evaluate(branch.workers[0].model, validation))
    return sizes, losses


def table(name, measured):
    sizes = [statistics.mean(of) for of in zip(*(sizes for sizes, _ in measured), strict=True)]
    lines = [
        f"## {name}", "",
        f"Beside the norm of one round's update, an owner's residual is {sizes[0]:.2f}, a member's {sizes[1]:.2f}.", "",
        "| forgotten | " + " | ".join(f"after {n}" for n in AFTER_ROUNDS) + " |", "|---" * (1 + len(AFTER_ROUNDS)) + "|",
    ]  # fmt: skip
    for what in measured[0][1]:
        runs = [losses[what] for _, losses in measured]
        kept = [losses["nothing"] for _, losses in measured]
        if what == "nothing":
            cells = [f"{statistics.mean(at):.4f}" for at in zip(*runs, strict=True)]
            lines.append(f"| nothing: the loss itself | {' | '.join(cells)} |")
            continue
        cells = []
        for at in range(len(AFTER_ROUNDS)):
            worse = [100 * (run[at] / base[at] - 1) for run, base in zip(runs, kept, strict=True)]
            cells.append(f"{statistics.mean(worse):+.2f} %")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=OF, default=list(OF))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--before", type=int, default=300, help="steps until everybody is killed")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = tuple(np.frombuffer(text, np.uint8) for text in stdlib_text())
    lines = []
    for name in args.methods:
        lines += table(name, [measure(OF[name], texts, args.before, 1000, seed) for seed in args.seeds])
        print("\n".join(lines[-20:]), flush=True)
    if args.record:
        command = "python benchmarks/forgetting.py " + " ".join(sys.argv[1:])
        about = (
            f"{datetime.date.today()}, Python {platform.python_version()}, torch {torch.__version__}; four workers, seeds "
            f"{' '.join(map(str, args.seeds))}, stopped after {args.before} of 1000 steps. Mean over the seeds."
        )
        head = f"# What is lost when all peers are killed at once\n\n```console\n$ {command}\n```\n\n{about}\n"
        args.record.write_text("\n".join([head, *lines]))


if __name__ == "__main__":
    main()
