"""One process that may take so much memory and no more. It trains alone, or as one of the members that hold a model together.

    python memory_worker.py FOLDER RANK N_MEMBERS BUDGET_MIB

N_MEMBERS 0: plain torch. Prints a line of JSON: the losses, and what was taken at the most, or the error.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import legion_p2p as legion
import legion_p2p.net.host  # so that what importing takes is not counted
import legion_p2p.train.sharding.model
from legion_p2p.observe.memory import give_back_freed_memory
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig

MIB = 1 << 20
CONFIG = GPTConfig(n_layer=16, n_head=8, width=512, context=16, vocab_size=256)
N_STEPS = 3
ADDRESSES = "addresses.json"


def data_bytes() -> int:
    """What counts against RLIMIT_DATA: private memory that can be written."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmData"))
    return int(line.split()[1]) * 1024


def batch_of(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 256, (1, CONFIG.context + 1), generator=torch.Generator().manual_seed(100 * rank + step))
    return tokens[:, :-1], tokens[:, 1:]


def alone() -> list[float]:
    model = GPT(CONFIG)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return [_step(model, 0, step, lambda: inner.step()) for step in range(N_STEPS)]


def together(folder: Path, rank: int, n: int) -> list[float]:
    peer = legion.Peer(listen=("/ip4/127.0.0.1/tcp/0",), lan=False, status=False)
    new_run = legion.NewRun("large", sharding="full", inner=legion.Inner(warmup_steps=0), rounds=legion.Rounds(quorum=1.0))
    if rank == 0:
        run = legion.create(new_run, GPT(CONFIG), peer=peer)
        (folder / "draft").write_text(json.dumps(run.addresses()))
        (folder / "draft").rename(folder / ADDRESSES)
    else:
        while not (folder / ADDRESSES).exists():
            time.sleep(0.05)
        run = legion.join("large", initial_peers=json.loads((folder / ADDRESSES).read_text()), peer=peer)
    with run:
        model = GPT(CONFIG, shapes_only=True)
        sharded = run.shard(model)
        sharded.wait_for_members(n)
        losses = [_step(model, rank, step, sharded.step) for step in range(N_STEPS)]
        sharded.finish(together=True)
    return losses


def _step(model: GPT, rank: int, step: int, end: Callable[[], object]) -> float:
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(*batch_of(rank, step))[1]
    loss.backward()
    end()
    return float(loss.detach())


def main() -> None:
    folder, rank, n, budget = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    give_back_freed_memory()
    before, at_first = data_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (before + budget * MIB,) * 2)
    try:
        losses = together(folder, rank, n) if n else alone()
    except (MemoryError, RuntimeError) as failed:
        print(json.dumps({"failed": str(failed)[:300]}), flush=True)
        return
    peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - at_first) / MIB
    print(json.dumps({"losses": losses, "peak_mib": peak_mib}), flush=True)


if __name__ == "__main__":
    main()
