"""One peer of several ranks, which are forks of one process: `rank_worker.py KIND N_RANKS FILE RUN ADDRESS STEPS`.

KIND: ddp, fsdp, or plain for a single process; dies: as ddp, and the last rank ends itself after its first push. FILE: where the
ranks find each other. ADDRESS: of the peer through which the run is joined; none: it is created. Each rank says what it has at
the end.
"""

import json
import os
import select
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import legion_p2p as legion
from legion_p2p.tensor.flatten import digest as digest_of
from tests.joint_batch import BATCH, batch_of, model_of
from tests.waiting import PATIENCE_S

TOLD = 20  # losses that are said
FP32 = legion.Rounds(push_codec="fp32", update_codec="fp32", local_steps=4)


def wrapped(kind: str, model: nn.Sequential) -> nn.Module:
    if kind == "plain":
        return model
    if kind != "fsdp":
        return nn.parallel.DistributedDataParallel(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def all_of(p: torch.Tensor) -> torch.Tensor:
    return p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach()


def say(event: str, **fields: Any) -> None:
    line = (json.dumps({"event": event, **fields}) + "\n").encode()
    assert len(line) <= select.PIPE_BUF  # longer ones of several processes would be mixed
    os.write(1, line)


def tell_of_members(event: legion.Event) -> None:
    if event.name == "member.changed":
        say("member", after=event.fields["after"])


def train(kind: str, rank: int, size: int, run: str, address: str, steps: int) -> None:
    model = wrapped(kind, model_of())
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    peer = legion.Peer(
        listen="/ip4/127.0.0.1/tcp/0", lan=False, port_mapping=False, dashboard="no", status=False, on_event=tell_of_members
    )
    is_new = address == "none"
    where = legion.NewRun(run, rounds=FP32) if is_new else run
    share, losses = BATCH // size, []
    part = slice(rank * share, (rank + 1) * share)
    contacts = [] if is_new else [address]
    with legion.Optimizer(inner, model, where, initial_peers=contacts, peer=peer, tokens_per_step=share) as opt:
        if rank == 0:
            say("in_run", address=opt.status.addresses[0])
        if run.endswith("together"):
            opt.wait_for_members(2, PATIENCE_S)
        for step in range(steps):
            x, y = batch_of(step)
            loss = (model(x[part]) - y[part]).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
            if kind == "dies" and step == 2:
                opt.flush(60)
                if rank == size - 1:
                    os._exit(9)
        digest = opt.finish(together=True, timeout_s=PATIENCE_S)
        known = {"steps": opt.steps, "tokens": opt.tokens, "run_step": opt.run_step, "should_stop": opt.should_stop}
    flat = torch.cat([all_of(p).reshape(-1) for p in model.parameters()])
    say("trained", rank=rank, losses=losses[:TOLD], model=digest_of(flat).hex(), digest=digest, **known)


def main() -> None:
    kind, file, run, address = sys.argv[1], sys.argv[3], sys.argv[4], sys.argv[5]
    size, steps = int(sys.argv[2]), int(sys.argv[6])
    torch.set_num_threads(1)
    rank, children = 0, []
    for other in range(1, size):
        child = os.fork()
        if child == 0:
            rank, children = other, []
            break
        children.append(child)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    train(kind, rank, size, run, address, steps)
    if rank:
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)


main()
