"""Train a model of one's own together with others. Three lines of an ordinary loop change; they are marked (1), (2), (3).

    python examples/01_wrap_an_optimizer.py --seconds 120
    python examples/01_wrap_an_optimizer.py --seconds 60 --initial-peers ADDRESS     # in a second terminal

The first one founds a run and prints its address; the second joins it. Alone it trains like plain torch.
"""

import argparse
import inspect
import time

import torch
from torch import nn
from torch.nn import functional as F

import legion_p2p as legion  # (1)

CONTEXT, BATCH = 32, 128


def build_model() -> nn.Module:
    """Predicts the next byte from the CONTEXT before it."""
    return nn.Sequential(nn.Embedding(256, 24), nn.Flatten(), nn.Linear(24 * CONTEXT, 512), nn.GELU(), nn.Linear(512, 256))


def batches(seed: int):
    """Random windows of a text that every machine has: the source of argparse."""
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)
        yield torch.stack([text[s : s + CONTEXT] for s in starts]), text[starts + CONTEXT]


def train(run: str, initial_peers: list[str], new_run: bool, seconds: float) -> None:
    torch.set_num_threads(1)  # a model this small is slower with more
    model = build_model()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    where = legion.NewRun(run) if new_run else run
    opt = legion.Optimizer(opt, model, where, initial_peers=initial_peers, tokens_per_step=BATCH)  # (2)
    print(f"run {run}; others join it with --initial-peers {opt.status.addresses[0]}", flush=True)

    smooth, end, shown_at = None, time.monotonic() + seconds, 0.0
    for x, y in batches(seed=time.time_ns() % 2**31):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()

        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if time.monotonic() - shown_at > 1:
            shown_at = time.monotonic()
            status = opt.status
            print(f"step {opt.steps}  loss {smooth:.3f}  members {len(status.members)}  rounds {status.rounds}", flush=True)
        if time.monotonic() > end:
            break

    opt.close()  # (3) leaves the run in order; a script that just ends does it as well
    print(f"loss {smooth:.3f} after {opt.steps} steps, of whose time the swarm took {opt.blocked_fraction:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="next-byte", help="name of the run")
    parser.add_argument("--initial-peers", nargs="+", default=[], metavar="ADDR", help="join it through any of these")
    parser.add_argument("--new-run", action="store_true", help="found it, though addresses (of a bootstrap node, say) are given")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to train")
    args = parser.parse_args()
    train(args.run, args.initial_peers, args.new_run or not args.initial_peers, args.seconds)
