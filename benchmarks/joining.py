"""How long a newcomer takes to fetch the model, from one, two, or four donors with narrow links.

    python benchmarks/joining.py --preset m --upload 50mbit

Donors are processes of their own that hold the run's model and do not train; each may send `--upload` and no more. Measured in
the joining process, from where imports are done to where it holds every shard, verified, and could make its first step.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time

AIM = "four donors in at most a third of the time of one"


def worker(address: str, args: argparse.Namespace) -> None:
    import torch

    import legion_p2p as legion
    from legion_p2p.train.gpt import GPT

    importlib.import_module("legion_p2p.net.host")  # what a peer needs beside torch
    torch.set_num_threads(1)
    model = GPT.from_preset(args.preset, torch.Generator().manual_seed(0 if address == "found" else 1))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    how = {"new_run": True} if address == "found" else {"initial_peers": [address]}
    how["upload_limit"] = "" if args.unlimited else args.upload
    began = time.perf_counter()
    with legion.Optimizer(inner, model, run="joining", listen=("/ip4/127.0.0.1/tcp/0",), **how) as opt:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donors", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--preset", default="m")
    parser.add_argument("--upload", default="50mbit", help="of each donor")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--worker")
    parser.add_argument("--unlimited", action="store_true")
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args)
        return 0
    rows = [measure(n, args) for n in args.donors]
    for row in rows:
        row["of_one_donor"] = row["joined_s"] / rows[0]["joined_s"]
    print(json.dumps({"upload": args.upload, "preset": args.preset, "rows": rows, "aim": AIM}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
