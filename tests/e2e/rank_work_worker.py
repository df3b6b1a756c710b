"""One process of two that compute batches together: `rank_work_worker.py RANK PORT`. Rank 1 ends itself after two steps."""

import os
import sys

import torch

from legion_p2p.config import NewRun, Training
from legion_p2p.errors import ClosedError
from legion_p2p.train.compute import Compute
from legion_p2p.train.described import described, model_of
from legion_p2p.train.rank_work import RankWork

rank, port = sys.argv[1:]
os.environ |= {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
torch.set_num_threads(1)
ranks = RankWork.of_this_job("cpu")
if rank == "1":
    part, n_parts = RankWork._part, 0

    def dying(self: RankWork, compute: Compute, xy: torch.Tensor) -> float:
        global n_parts
        if n_parts == 2:
            os._exit(9)
        n_parts += 1
        return part(self, compute, xy)

    RankWork._part = dying  # type: ignore[method-assign]
    ranks.follow("cpu", Training())
spec = described(NewRun("together", preset="xxs"))
compute, alone = (Compute(model_of(spec), "cpu", Training()) for _ in range(2))
ranks.begin(spec)
x = torch.randint(256, (5, 64), generator=torch.Generator().manual_seed(0))
try:
    for step in range(1, 9):
        loss = ranks.step(compute, x, x)
        wanted = alone.backward(x, x)
        pairs = zip(compute.model.module.parameters(), alone.model.module.parameters(), strict=True)
        furthest = max(float((a.grad - b.grad).abs().max()) for a, b in pairs)
        print(f"step {step}: loss differs by {abs(loss - wanted):.1e}, gradients by {furthest:.1e}", flush=True)
        for one in (compute, alone):
            with torch.no_grad():
                for p in one.model.module.parameters():
                    p -= 0.1 * p.grad
            one.model.module.zero_grad()
except ClosedError as closed:
    print(f"closed: {closed}", flush=True)
ranks.close()
os._exit(0)
