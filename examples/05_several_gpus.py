"""One peer of several GPUs, or of several processes on a CPU: torchrun starts the ranks, and rank 0 has the peer.

    torchrun --nproc-per-node 2 examples/05_several_gpus.py --seconds 60
    torchrun --nproc-per-node 2 examples/05_several_gpus.py --seconds 60 --initial-peers ADDRESS      # on another machine
    torchrun --nproc-per-node 2 examples/05_several_gpus.py --fsdp                                    # parameters are spread, too

What differs from a loop under torchrun as it always was: legion.Optimizer around the optimizer, at every rank.
"""

import argparse
import inspect
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import legion_p2p as legion

CONTEXT, BATCH = 32, 64  # of each rank


def build_model() -> nn.Module:
    """Predicts the next byte from the CONTEXT before it."""
    return nn.Sequential(nn.Embedding(256, 24), nn.Flatten(), nn.Linear(24 * CONTEXT, 512), nn.GELU(), nn.Linear(512, 256))


def batches(seed: int, device: torch.device):
    """Random windows of a text that every machine has: the source of argparse."""
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)
        yield torch.stack([text[s : s + CONTEXT] for s in starts]).to(device), text[starts + CONTEXT].to(device)


def spread(model: nn.Module, fsdp: bool) -> nn.Module:
    if not fsdp:
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard  # torch 2.6 and newer

    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def train(run: str, initial_peers: list[str], seconds: float, fsdp: bool) -> None:
    rank = dist.get_rank()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # all ranks begin with the same weights, as DistributedDataParallel wants it anyway
    model = spread(build_model().to(device), fsdp)
    where = run if initial_peers else legion.NewRun(run)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    opt = legion.Optimizer(opt, model, where, initial_peers=initial_peers, tokens_per_step=BATCH)
    if rank == 0:
        print(f"run {run}; others join it with --initial-peers {opt.status.addresses[0]}", flush=True)

    loss, end = torch.zeros(()), time.monotonic() + seconds
    for x, y in batches(rank, device):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        over = torch.tensor([time.monotonic() > end or opt.should_stop], dtype=torch.int32, device=device)
        dist.broadcast(over, src=0)  # all ranks leave their loops after the same step
        if over.item():
            break

    digest = opt.finish(timeout_s=30)
    print(f"rank {rank}: loss {loss.item():.3f} after {opt.steps} steps, common model {digest[:12]}", flush=True)
    opt.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="several-gpus", help="name of the run")
    parser.add_argument("--initial-peers", nargs="+", default=[], metavar="ADDR", help="join it through any of these")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to train")
    parser.add_argument("--fsdp", action="store_true", help="spread the parameters over the ranks, with FSDP2")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so torchrun ends it when another has died
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(args.run, args.initial_peers, args.seconds, args.fsdp)
    finally:
        dist.destroy_process_group()
