"""Two peers on this machine: one founds a run, the other joins it, both end with the same model, bit for bit.

python examples/02_create_and_join_a_run.py
"""

import multiprocessing as mp
from multiprocessing.connection import Connection

import torch
from torch import nn

import legion_p2p as legion

STEPS = 60
HERE_ONLY = legion.Peer(listen="/ip4/127.0.0.1/tcp/0")  # loopback, any free port; else a peer listens at all interfaces


def peer(seed: int, initial_peers: list[str], parent: Connection) -> None:
    """Learn to add four numbers, from examples that only this peer has."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = "sums" if initial_peers else legion.NewRun("sums")
    opt = legion.Optimizer(opt, model, run, initial_peers=initial_peers, peer=HERE_ONLY)
    with opt:  # leaves the run at the end, whatever happens
        parent.send(opt.status.addresses[0])
        opt.wait_for_members(2)  # or the creator, with so little to do, is done before anybody has joined
        for _ in range(STEPS):
            x = torch.rand(64, 4, generator=generator)
            loss = nn.functional.mse_loss(model(x).squeeze(1), x.sum(1))
            loss.backward()
            opt.step()
            opt.zero_grad()
        digest = opt.finish(together=True)  # hand in the rest, and stay until everybody is done
        parent.send((loss.item(), digest))


def main() -> None:
    context = mp.get_context("spawn")  # a forked process would inherit the threads' locks, but not the threads
    ends, processes = [], []
    addresses: list[str] = []
    for seed in (1, 2):
        mine, theirs = context.Pipe()
        process = context.Process(target=peer, args=(seed, addresses, theirs), daemon=True)
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
        address = mine.recv()
        print(f"peer {seed} {'joined' if addresses else 'created'} the run, at {address}", flush=True)
        addresses = addresses or [address]

    digests = []
    for seed, end in enumerate(ends, start=1):
        loss, digest = end.recv()
        digests.append(digest)
        print(f"peer {seed} loss {loss:.4f} digest of the common model {digest[:16]}")
    for process in processes:
        process.join()
    print("same model" if digests[0] == digests[1] else "the models differ")


if __name__ == "__main__":
    main()
