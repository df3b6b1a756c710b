"""What a peer takes of a core and of its connection while nobody trains: real processes, real connections.

    python benchmarks/idle.py --peers 50 --settle 240 --measure 60 --late 1

All processes are forks of one, so that memory and start are paid once. Each joins a run of a small model through the first one,
and waits. Printed for each period: the CPU time of a process over the time that passed, the mean and the largest; all bytes that
it sent and received, as the mean; how often a member was taken for dead, though none died. A newcomer does more: it announces
itself to the DHT after 2, 4, 8 and 16 seconds, and then three times a minute. With `--late` so many more peers join when the
others have settled; printed is how long each takes from its start until it is in the run, and until it knows all members.
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
from legion_p2p.observe.events import Event
from legion_p2p.peer import open_peer
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation

NUMEL = 1 << 16
PARAMS = (ParamSpec("x", (NUMEL,)),)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def all_bytes(run: ActiveRun) -> int:
    """That the process sent and received, over all its connections."""
    sockets = run.network.network_traffic().sockets
    return 0 if sockets is None else sockets.total.sent_bytes + sockets.total.received_bytes


def idle_peer(rank: int, args: argparse.Namespace, address, barrier, results) -> None:
    gc.set_threshold(*COLLECT_AFTER)
    torch.set_num_threads(1)
    start = torch.zeros(NUMEL, dtype=torch.float32, device="cpu")
    n_peers, is_late = args.peers, rank >= args.peers
    run: str | RunCreation = "idle"
    if rank == 0:
        run = RunCreation(RunSpec("idle", "", PARAMS, RoundSpec()), start)

    async def main() -> None:
        n_dead = 0

        def note(event: Event) -> None:
            nonlocal n_dead
            n_dead += event.name == "member.dead"

        contacts = () if rank == 0 else (address.get(),)
        began = time.perf_counter()
        peer = Peer(listen="/ip4/127.0.0.1/tcp/0", status=False, on_event=note)
        async with open_peer(run, peer, initial_peers=contacts, params=PARAMS, start=start) as engine:
            if rank == 0:
                for _ in range(n_peers + args.late - 1):
                    address.put(next(a for a in engine.network.addresses() if "127.0.0.1" in a))
            in_s = time.perf_counter() - began
            await engine.wait_for_members(n_peers)
            if is_late:
                results.put((rank, in_s, time.perf_counter() - began))
                await trio.sleep_forever()
            await trio.to_thread.run_sync(barrier.wait)
            await trio.sleep(args.settle)
            periods = []
            for _ in range(args.periods):
                cpu, began, moved = cpu_s(), time.perf_counter(), all_bytes(engine)
                await trio.sleep(args.measure)
                passed_s, now = time.perf_counter() - began, all_bytes(engine)
                periods.append((100 * (cpu_s() - cpu) / passed_s, (now - moved) / passed_s, n_dead))
            results.put((rank, periods, len(engine.network.messenger.connected())))
            await trio.to_thread.run_sync(barrier.wait)

    trio.run(main)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=20)
    parser.add_argument("--apart", type=float, default=0.5, metavar="SECONDS", help="between the starts of two of them")
    parser.add_argument("--settle", type=float, default=120.0, metavar="SECONDS", help="from the last peer's arrival on")
    parser.add_argument("--measure", type=float, default=30.0, metavar="SECONDS", help="the length of a period")
    parser.add_argument("--periods", type=int, default=2)
    parser.add_argument("--late", type=int, default=0, metavar="N", help="join when a half of --settle is over")
    args = parser.parse_args()
    context = mp.get_context("fork")
    address, results, barrier = context.Queue(), context.Queue(), context.Barrier(args.peers + 1)
    workers = []

    def start(rank: int) -> None:
        workers.append(context.Process(target=idle_peer, args=(rank, args, address, barrier, results), daemon=True))
        workers[-1].start()

    began = time.perf_counter()
    for rank in range(args.peers):
        start(rank)
        time.sleep(args.apart)
    try:
        barrier.wait(timeout=600)
        print(f"{args.peers} peers know each other after {time.perf_counter() - began:.0f} s", flush=True)
        time.sleep(args.settle / 2)
        for rank in range(args.peers, args.peers + args.late):
            start(rank)
        rows = [results.get(timeout=600 + args.settle + args.periods * args.measure) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
    for _, in_s, known_s in (row for row in rows if row[0] >= args.peers):
        print(f"one that came late is in the run after {in_s:.1f} s, and knows all after {known_s:.1f} s", flush=True)
    rows = [row for row in rows if row[0] < args.peers]
    for period in range(args.periods):
        shares, n_bytes, n_dead = zip(*(row[1][period] for row in rows), strict=True)
        report = {
            "peers": args.peers,
            "connections": statistics.median(row[2] for row in rows),
            "core_percent_mean": round(statistics.fmean(shares), 2),
            "core_percent_max": round(max(shares), 2),
            "bytes_s_mean": round(statistics.fmean(n_bytes)),
            "taken_for_dead_so_far": sum(n_dead),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
