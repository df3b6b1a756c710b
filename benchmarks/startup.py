"""From process start to the first local step in a run, and to the first contribution in an update; memory beyond torch.

    python benchmarks/startup.py --peers 4

A founder trains; then peers start one after another, on an otherwise idle machine. `imports_s` is what importing torch and libp2p
costs in the same process; `join_s` is from there to being in the run, `contribute_s` to the first inclusion.
Memory is the resident set of a peer that has joined and idles, less that of a process that has only imported torch.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time

KNOWN = {"hivemind": {"until_four_peers_are_up_s": 13.5, "MB_per_peer": [440, 500]}, "aim": {"join_s": 5, "MB_beyond_torch": 150}}


def worker(address: str, n_steps: int) -> None:
    started = time.time() - float(sys.argv[sys.argv.index("--since") + 1])
    began = time.perf_counter()
    import psutil
    import torch

    torch.set_num_threads(1)
    tiny = torch.nn.Linear(8, 8)  # a step of plain torch: what it imports and allocates on first use is not ours
    plain = torch.optim.AdamW(tiny.parameters())
    tiny(torch.zeros(8, 8)).sum().backward()
    plain.step()
    plain.zero_grad()
    torch_mb = psutil.Process().memory_info().rss / 1e6
    import legion_p2p as legion

    importlib.import_module("legion_p2p.net.host")  # what a peer needs beside torch
    from legion_p2p.train.gpt import GPT

    imported = time.perf_counter()
    model = GPT.from_preset("s", torch.Generator().manual_seed(0))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = "startup" if address else legion.NewRun("startup", rounds=legion.Rounds(local_steps=5))
    peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0")
    opt = legion.Optimizer(inner, model, run, initial_peers=[address] if address else (), peer=peer)
    joined = time.perf_counter()
    if not address:
        print(json.dumps({"address": next(a for a in opt.status.addresses if "127.0.0.1" in a)}), flush=True)
    idle_mb = psutil.Process().memory_info().rss / 1e6
    first_step = contributed = None
    while opt.steps < n_steps:
        x = torch.randint(0, 256, (4, 129))
        _, loss = model(x[:, :-1], x[:, 1:])
        loss.backward()
        opt.step()
        opt.zero_grad()
        first_step = first_step or time.perf_counter()
        if address and contributed is None and me_included(opt):
            contributed = time.perf_counter()
            break
    row = {
        "interpreter_s": round(started, 3),
        "imports_s": round(imported - began, 3),
        "join_s": round(joined - imported, 3),
        "first_step_s": round((first_step or joined) - imported, 3),
        "contribute_s": round(contributed - imported, 3) if contributed else None,
        "torch_MB": round(torch_mb, 1),
        "idle_MB": round(idle_mb, 1),
        "beyond_torch_MB": round(idle_mb - torch_mb, 1),
    }
    print(json.dumps(row), flush=True)
    opt.close()


def me_included(opt) -> bool:
    engine = opt._part.engine
    return any(replica.chain.includes(engine.me, 0) for replica in engine.shards.replicas.values())


def start(address: str, n_steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", address, "--steps", str(n_steps), "--since", str(time.time())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--worker")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--since")
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args.steps)
        return 0
    founder = start("", 1_000_000)
    try:
        address = json.loads(founder.stdout.readline())["address"]
        rows = []
        for _ in range(args.peers - 1):
            peer = start(address, args.steps)
            rows.append(json.loads(peer.stdout.readline()))
            peer.wait(60)
            print(json.dumps(rows[-1]), file=sys.stderr)
    finally:
        founder.kill()
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0] if rows[0][key] is not None}
    print(json.dumps({"median": median, "rows": rows, "known": KNOWN}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
