"""What a peer takes of a core while nobody trains: real processes, real connections.

    python benchmarks/idle.py --peers 50 --settle 240 --measure 60

All processes are forks of one, so that memory and start are paid once. Each joins a run of a small model through the first one,
and waits. Printed for each period: the CPU time of a process over the time that passed, the mean and the largest. A newcomer does
more: it announces itself to the DHT after 2, 4, 8 and 16 seconds, and then three times a minute.
"""

import argparse
import gc
import json
import multiprocessing as mp
import os
import resource
import statistics
import time

import torch
import trio

from legion_p2p.cli.running import COLLECT_AFTER
from legion_p2p.config import Peer
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.peer import open_peer
from legion_p2p.services.run.joiner import RunCreation

NUMEL = 1 << 16
PARAMS = (ParamSpec("x", (NUMEL,)),)
STARTED_EACH_S = 0.5


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def idle_peer(rank: int, n_peers: int, address, settle_s: float, period_s: float, n_periods: int, barrier, results) -> None:
    gc.set_threshold(*COLLECT_AFTER)
    torch.set_num_threads(1)
    start = torch.zeros(NUMEL, dtype=torch.float32, device="cpu")
    run: str | RunCreation = "idle"
    if rank == 0:
        run = RunCreation(RunSpec("idle", "", PARAMS, RoundSpec()), start)

    async def main() -> None:
        contacts = () if rank == 0 else (address.get(),)
        peer = Peer(listen="/ip4/127.0.0.1/tcp/0", status=False)
        async with open_peer(run, peer, initial_peers=contacts, params=PARAMS, start=start) as engine:
            if rank == 0:
                for _ in range(n_peers - 1):
                    address.put(next(a for a in engine.network.addresses() if "127.0.0.1" in a))
            await engine.wait_for_members(n_peers)
            await trio.to_thread.run_sync(barrier.wait)
            await trio.sleep(settle_s)
            shares = []
            for _ in range(n_periods):
                cpu, began = cpu_s(), time.perf_counter()
                await trio.sleep(period_s)
                shares.append(100 * (cpu_s() - cpu) / (time.perf_counter() - began))
            results.put((rank, shares, len(engine.network.messenger.connected())))
            await trio.to_thread.run_sync(barrier.wait)

    trio.run(main)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=20)
    parser.add_argument("--settle", type=float, default=120.0, metavar="SECONDS", help="from the last peer's arrival on")
    parser.add_argument("--measure", type=float, default=30.0, metavar="SECONDS", help="the length of a period")
    parser.add_argument("--periods", type=int, default=2)
    args = parser.parse_args()
    context = mp.get_context("fork")
    address, results, barrier = context.Queue(), context.Queue(), context.Barrier(args.peers)
    workers = []
    for rank in range(args.peers):
        arguments = (rank, args.peers, address, args.settle, args.measure, args.periods, barrier, results)
        workers.append(context.Process(target=idle_peer, args=arguments, daemon=True))
        workers[-1].start()
        time.sleep(STARTED_EACH_S)
    try:
        rows = [results.get(timeout=600 + args.settle + args.periods * args.measure) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
    for period in range(args.periods):
        shares = [row[1][period] for row in rows]
        report = {
            "peers": args.peers,
            "connections": statistics.median(row[2] for row in rows),
            "core_percent_mean": round(statistics.fmean(shares), 2),
            "core_percent_max": round(max(shares), 2),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
