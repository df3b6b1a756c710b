"""What a peer of the real engine costs in CPU, per second of its own (virtual) time.

    python benchmarks/swarm_cpu.py
    python benchmarks/swarm_cpu.py --peers 50 --profile
    python benchmarks/swarm_cpu.py --peers 10 --idle --shards 4 844

Peers train a toy model in virtual time over the network of legion_p2p.sim: 16 shards of 256 elements, int8, local steps of 1 s,
ten of them a round. The CPU time of the process is divided by peers and virtual seconds, so it contains the simulated network,
the toy's arithmetic and all that a peer does: announcements, probing, pushes, rounds and updates. Joining is not counted.
With `--idle` nobody trains: what is left is what a run costs that only waits. Python's garbage collector is set as all commands
set it.
"""

import argparse
import cProfile
import gc
import pstats
import time

import torch
import trio
from trio.testing import MockClock

from legion_p2p.cli.running import COLLECT_AFTER
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm

SHARD_ELEMENTS = 256
STEPS_PER_ROUND = 10
WARM_UP_S = 30.0  # everybody has met everybody, and the first rounds are over
MEASURED_S = 60.0


async def cpu_ms(n_peers: int, n_shards: int, idle: bool, profile: cProfile.Profile | None) -> tuple[float, int]:
    """CPU milliseconds of one peer per virtual second; and the rounds that closed meanwhile at all peers together."""
    rounds = RoundSpec(
        local_steps=STEPS_PER_ROUND, push_codec="int8", update_codec="int8", shard_elements=SHARD_ELEMENTS, aggregation="mean"
    )
    async with Swarm(numel=n_shards * SHARD_ELEMENTS, round=rounds, step_s=1.0) as swarm:
        first = await swarm.add("peer-0", training=not idle)
        for n in range(1, n_peers):
            swarm.start(f"peer-{n}", training=not idle)
        for peer in swarm.peers.values():
            await peer.joined.wait()
        assert first.engine.plan.n_shards == n_shards
        await trio.sleep(WARM_UP_S)
        rounds_before = sum(peer.engine.shards.states.round_log.rounds for peer in swarm.living())
        gc.collect()
        if profile is not None:
            profile.enable()
        began_s, began_at = time.process_time(), trio.current_time()
        await trio.sleep(MEASURED_S)
        spent_s, passed_s = time.process_time() - began_s, trio.current_time() - began_at
        if profile is not None:
            profile.disable()
        n_rounds = sum(peer.engine.shards.states.round_log.rounds for peer in swarm.living()) - rounds_before
    return 1000 * spent_s / passed_s / n_peers, n_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--shards", type=int, nargs="+", default=[16])
    parser.add_argument("--idle", action="store_true", help="nobody trains")
    parser.add_argument("--profile", action="store_true", help="print where the time goes; what is measured is then slower")
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.set_threshold(*COLLECT_AFTER)
    for n_peers in args.peers:
        for n_shards in args.shards:
            profile = cProfile.Profile(time.process_time) if args.profile else None
            measured = trio.run(cpu_ms, n_peers, n_shards, args.idle, profile, clock=MockClock(autojump_threshold=0))
            ms, n_rounds = measured
            rounds = n_rounds / n_peers / n_shards
            print(
                f"{n_peers:4} peers, {n_shards:4} shards: {ms:6.2f} ms a peer and second, {rounds:.1f} rounds a shard", flush=True
            )
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
