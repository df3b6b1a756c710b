"""Averaging a large fp32 vector among local processes: bytes on the wire, wall time and CPU time, beside gloo in the same run.

    python benchmarks/averaging.py --elements 25000000 --peers 4

Before it, the peers have been together for a while (--settle): a newcomer announces itself to the DHT often, and then ever more
rarely, which took a quarter of the CPU that was seen two seconds after the last one had come. What peers take while nothing is
averaged is printed beside it (idle_core_percent, of one of them). Python's collector is set as in `legion-peer`: with its default
thresholds it may go through all objects of torch meanwhile, which takes 0.1 s in each process.

Ideal is what any all-reduce through owners must send: each of n peers sends the (n-1)/n of the vector that it does not own,
and each owner sends its mean to n-1 others: 2 (n-1) times the vector. Bytes on the wire are the loopback interface's own count,
headers of TCP and IP included, so nothing else should use the network meanwhile. gloo does not encrypt; lanes do. CPU seconds per
GiB are all that is used, over what all peers receive.
"""

import argparse
import gc
import importlib.util
import json
import multiprocessing as mp
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

IDLE_S = 3.0
MATCHMAKING_S = 3.0  # of hivemind's wall time: it looks for others so long
PAUSE_S = 1.0  # between two rounds: what is done after one, such as its answers, does not count for the next
KNOWN = {"hivemind": {"wire_MB": 602.7, "wall_s": 4.2, "cpu_s": [8.7, 12.2]}, "gloo": {"wire_MB": 601.0, "wall_s": 0.22}}


def loopback_bytes() -> int:
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def average_peer(rank, n_peers, elements, codec, settle_s, n_rounds, address, barrier, results):  # noqa: PLR0913 (what a process is given)
    import torch
    import trio

    from legion_p2p.cli.running import COLLECT_AFTER
    from legion_p2p.config import Peer
    from legion_p2p.core.plan import ParamSpec
    from legion_p2p.core.round_spec import RoundSpec
    from legion_p2p.core.run import RunSpec
    from legion_p2p.peer import open_peer
    from legion_p2p.services.run.joiner import RunCreation
    from legion_p2p.services.run.progress import Progress
    from legion_p2p.services.shards.replica import LocalChange

    gc.set_threshold(*COLLECT_AFTER)
    torch.set_num_threads(1)
    values = torch.full((elements,), float(rank + 1))
    rounds = RoundSpec(local_steps=1, push_codec=codec, update_codec=codec, aggregation="mean", quorum=1.0, synchronous=True)
    params = (ParamSpec("x", (elements,)),)
    run = "bench"
    if rank == 0:
        run = RunCreation(RunSpec("bench", "", params, rounds), torch.zeros(elements, dtype=torch.float32, device="cpu"))
    peer = Peer(listen="/ip4/127.0.0.1/tcp/0", status=False)

    async def main():
        contacts = () if rank == 0 else (address.get(),)
        async with open_peer(
            run, peer, initial_peers=contacts, params=params, start=torch.zeros(elements, dtype=torch.float32, device="cpu")
        ) as engine:
            if rank == 0:
                for _ in range(n_peers - 1):
                    address.put(next(a for a in engine.network.addresses() if "127.0.0.1" in a))
            await engine.wait_for_members(n_peers)
            engine.report(Progress(step=1, tokens=1, training=True))
            while sum(a.training for a in engine.members.roster.everyone()) < n_peers:
                await engine.members.changed.wait()
            await trio.sleep(settle_s)
            idle = cpu_s()
            await trio.sleep(IDLE_S)
            idle = cpu_s() - idle
            plan, measured = engine.plan, []
            for n_before in range(n_rounds):
                await trio.to_thread.run_sync(barrier.wait)
                sent = engine.network.messenger.traffic().sent_bytes
                wire, began, cpu = loopback_bytes(), time.perf_counter(), cpu_s()
                for shard in range(plan.n_shards):
                    first, end = plan.bounds(shard)
                    held = engine.shards.replicas[shard]
                    change = LocalChange(shard, held.chain.version, held.reference, values[first:end], 1, 1)
                    engine.shards.contribute(change)
                for held in engine.shards.replicas.values():
                    while held.chain.version <= n_before:
                        await held.notify.wait()
                wall, cpu = time.perf_counter() - began, cpu_s() - cpu
                await trio.to_thread.run_sync(barrier.wait)
                measured.append(
                    {
                        "wall_s": wall,
                        "cpu_s": cpu,
                        "wire_bytes": loopback_bytes() - wire,
                        "sent_bytes": engine.network.messenger.traffic().sent_bytes - sent,
                        "error": float((engine.common_parameters() - ((n_peers + 1) / 2 + n_before)).abs().max()),
                        "digest": engine.common_digest(),
                    }
                )
                values.add_(1)
                await trio.sleep(PAUSE_S)
            results.put({"rank": rank, "idle_cpu_s": idle, "rounds": measured})
            await trio.to_thread.run_sync(barrier.wait)

    trio.run(main)


def gloo_peer(rank, n_peers, elements, store, barrier, results):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_peers)
    values = torch.full((elements,), float(rank + 1))
    dist.all_reduce(torch.ones(1))
    barrier.wait()
    wire, began, cpu = loopback_bytes(), time.perf_counter(), cpu_s()
    dist.all_reduce(values)
    wall, cpu = time.perf_counter() - began, cpu_s() - cpu
    barrier.wait()
    results.put({"rank": rank, "wall_s": wall, "cpu_s": cpu, "wire_bytes": loopback_bytes() - wire})
    barrier.wait()
    dist.destroy_process_group()


def hivemind_peer(rank, n_peers, elements, address, barrier, results):
    import hivemind
    import psutil
    import torch

    mp.set_start_method("fork", force=True)  # its own processes are started so

    def cpu_of_all() -> float:
        """It works in processes of its own, one of them not in Python."""
        own = psutil.Process()
        return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))

    torch.set_num_threads(1)
    initial = [] if rank == 0 else [address.get()]
    dht = hivemind.DHT(initial_peers=initial, start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    if rank == 0:
        for _ in range(n_peers - 1):
            address.put(str(dht.get_visible_maddrs()[0]))
    averager = hivemind.averaging.DecentralizedAverager(
        [torch.full((elements,), float(rank + 1))], dht, prefix="bench", start=True,
        target_group_size=n_peers, min_group_size=n_peers, min_matchmaking_time=MATCHMAKING_S,
    )  # fmt: skip
    barrier.wait()
    time.sleep(5)
    barrier.wait()
    wire, began, cpu = loopback_bytes(), time.perf_counter(), cpu_of_all()
    averager.step(timeout=60)
    wall, cpu = time.perf_counter() - began, cpu_of_all() - cpu
    barrier.wait()
    results.put({"rank": rank, "wall_s": wall, "cpu_s": cpu, "wire_bytes": loopback_bytes() - wire})
    barrier.wait()
    averager.shutdown()
    dht.shutdown()


def run(target, n_peers, *args):
    context = mp.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(n_peers)
    workers = [context.Process(target=target, args=(rank, n_peers, *args, barrier, results)) for rank in range(n_peers)]
    for worker in workers:
        worker.start()
    rows = [results.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(30)
        if worker.is_alive():
            worker.kill()
    return sorted(rows, key=lambda row: row["rank"])


def summary(rows, ideal_bytes):
    wire = max(row["wire_bytes"] for row in rows)
    cpu = sum(row["cpu_s"] for row in rows)
    found = {
        "wire_MB": round(wire / 1e6, 1),
        "wire_over_ideal": round(wire / ideal_bytes, 4),
        "wall_s": round(max(row["wall_s"] for row in rows), 3),
        "cpu_s": round(cpu, 2),
        "cpu_s_per_gib": round(cpu / (ideal_bytes / 2**30), 2),
    }
    if "error" in rows[0]:
        if len({row["digest"] for row in rows}) != 1:
            raise SystemExit(f"the peers differ: {rows}")
        found["sent_over_ideal"] = round(sum(row["sent_bytes"] for row in rows) / ideal_bytes, 4)
        found["max_error"] = max(row["error"] for row in rows)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--codec", default="fp32")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--only", choices=("legion", "hivemind"), help="beside gloo: hivemind 1.1.12 needs a protobuf that libp2p cannot use"
    )
    parser.add_argument("--rounds", type=int, default=3, help="by the same processes; the first takes memory that is new to them")
    parser.add_argument("--settle", type=float, default=20.0, metavar="SECONDS", help="from the last peer's arrival on")
    args = parser.parse_args()
    ideal_bytes = 2 * (args.peers - 1) * 4 * args.elements
    report = {"elements": args.elements, "peers": args.peers, "codec": args.codec, "ideal_MB": ideal_bytes / 1e6, "runs": []}
    spawning = mp.get_context("spawn")
    for _ in range(args.repeat):
        found = {}
        if args.only != "hivemind":
            ours = run(average_peer, args.peers, args.elements, args.codec, args.settle, args.rounds, spawning.Queue())
            rounds = [[row["rounds"][n] for row in ours] for n in range(args.rounds)]
            found["legion"] = [summary(one, ideal_bytes) for one in rounds]
            found["idle_core_percent"] = round(100 * max(row["idle_cpu_s"] for row in ours) / IDLE_S, 1)
        with tempfile.TemporaryDirectory() as folder:
            found["gloo"] = summary(run(gloo_peer, args.peers, args.elements, f"{folder}/store"), ideal_bytes)
        if args.only != "legion" and importlib.util.find_spec("hivemind") is not None:
            found["hivemind"] = summary(run(hivemind_peer, args.peers, args.elements, spawning.Queue()), ideal_bytes)
        report["runs"].append(found)
        print(json.dumps(report["runs"][-1]), file=sys.stderr)
    report["known"] = KNOWN
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
