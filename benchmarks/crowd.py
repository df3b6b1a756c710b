"""What a peer costs in a run of many regions: CPU and control bytes, and how soon a newcomer's work counts.

    python benchmarks/crowd.py --peers 10 100
    python benchmarks/crowd.py --peers 1000 --warm-up 15 --measure 10

The real engine in virtual time, as in benchmarks/swarm_cpu.py: `--shards` shards of 256 elements, int8, local steps of 1 s, ten
of them a round. Peers are in regions of `--region` members. All start within `--over` virtual seconds; what is measured begins
`--warm-up` seconds after the last one has joined. CPU is that of the whole process, divided by peers and virtual seconds, so
it contains the simulated network and the toy's arithmetic. Control bytes are all that a peer sends and receives, gossip as
often as it first comes, but for the bodies of pushes, updates, syncs of regions and whole shards. At the end newcomers come,
one each 2.3 s, that know one peer of another region: the seconds until each is in the run, and until an update contains a push
of it, the mean and the longest.
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass

import torch
import trio
from trio.testing import MockClock

from legion_p2p.cli.running import COLLECT_AFTER
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

SHARD_ELEMENTS = 256
STEPS_PER_ROUND = 10
DATA = ("pushes", "updates", "regions", "catching up")
NEWCOMER_S = 60.0  # after which a newcomer is given up
APART_S = 2.3  # newcomers: so that they come at all moments of a round


@dataclass
class Sample:
    """What one peer had sent and received at one moment, in bytes."""

    control: int
    gossip: int
    members: int
    """Of control: exchanges of announcements, probes and pings."""


@dataclass
class Outcome:
    """Of one run."""

    n_peers: int
    n_regions: int
    n_known: float
    """Members that one knows, on average."""
    cpu_ms: float
    cpu_s: float
    """Of the whole process, from its start."""
    control_bytes_s: float
    gossip_bytes_s: float
    members_bytes_s: float
    rounds: float
    n_wrongly_dead: int
    joined_s: list[float]
    counted_s: list[float]
    """Of each newcomer."""


async def all_join_late(swarm: Swarm, n_newcomers: int, region: str, contact: SimPeer) -> list[tuple[float, float]]:
    """`join_late` of each of some newcomers."""
    seconds: list[tuple[float, float]] = []

    async def join(n: int) -> None:
        seconds.append(await join_late(swarm, f"newcomer-{n}", region, contact))

    async with trio.open_nursery() as nursery:
        for n in range(n_newcomers):
            nursery.start_soon(join, n)
            await trio.sleep(APART_S)
    return seconds


def sample(peer: SimPeer) -> Sample:
    network, classes = peer.network, peer.engine.messenger.books.by_class
    of = {name: moved.sent_bytes + moved.received_bytes for name, moved in classes.items()}
    data = sum(of.get(name, 0) for name in DATA)
    return Sample(network.n_sent + network.n_received + network.n_gossip - data, network.n_gossip, of.get("members", 0))


async def join_late(swarm: Swarm, name: str, region: str, contact: SimPeer) -> tuple[float, float]:
    """Seconds until a newcomer that knows `contact` is in the run, and until an update contains what it has pushed."""
    began_at, counted = trio.current_time(), trio.Event()
    newcomer = swarm.start(name, region=region)
    swarm.world.connect(newcomer.id, contact.id)
    settle = newcomer.mailbox.settle

    def settled(shard: int, failure: str | None = None) -> None:
        settle(shard, failure)
        if failure is None:
            counted.set()

    newcomer.mailbox.settle = settled  # type: ignore[method-assign]
    with trio.move_on_after(NEWCOMER_S):
        await newcomer.joined.wait()
        joined_s = trio.current_time() - began_at
        await counted.wait()
        return joined_s, trio.current_time() - began_at
    return NEWCOMER_S, NEWCOMER_S


async def measured(n_peers: int, options: argparse.Namespace) -> Outcome:
    rounds = RoundSpec(
        local_steps=STEPS_PER_ROUND, push_codec="int8", update_codec="int8", shard_elements=SHARD_ELEMENTS, aggregation="mean"
    )
    n_regions = -(-n_peers // options.region)
    dead: list[str] = []
    async with Swarm(
        numel=options.shards * SHARD_ELEMENTS,
        round=rounds,
        step_s=1.0,
        on_event=lambda peer, event: dead.append(peer.name) if event.name == "member.dead" else None,
    ) as swarm:
        first = await swarm.add("peer-0", region="region-0")
        for n in range(1, n_peers):
            swarm.start(f"peer-{n}", region=f"region-{n % n_regions}")
            await trio.sleep(options.over / n_peers)
        for peer in swarm.peers.values():
            await peer.joined.wait()
        print(f"{n_peers} peers are in the run after {time.process_time():.0f} s of CPU", flush=True)
        await trio.sleep(options.warm_up)
        peers = list(swarm.living())
        before, rounds_before = [sample(peer) for peer in peers], n_rounds(peers)
        gc.collect()
        began_s, began_at = time.process_time(), trio.current_time()
        await trio.sleep(options.measure)
        spent_s, passed_s = time.process_time() - began_s, trio.current_time() - began_at
        moved = list(zip(before, [sample(peer) for peer in peers], strict=True))

        def rate(field: str) -> float:
            return statistics.mean(getattr(after, field) - getattr(was, field) for was, after in moved) / passed_s

        n_rounds_passed = n_rounds(peers) - rounds_before
        late = await all_join_late(swarm, options.newcomers, f"region-{n_regions - 1}", first)
        return Outcome(
            n_peers,
            n_regions,
            statistics.mean(len(peer.engine.members.roster.everyone()) for peer in peers),
            1000 * spent_s / passed_s / n_peers,
            time.process_time(),
            rate("control"),
            rate("gossip"),
            rate("members"),
            n_rounds_passed / n_peers / options.shards,
            len(dead),
            [joined_s for joined_s, _ in late],
            [counted_s for _, counted_s in late],
        )


def spread(seconds: list[float]) -> str:
    if not seconds:
        return "(nobody came)"
    return f"{statistics.mean(seconds):.1f} s ({max(seconds):.1f} at most)"


def n_rounds(peers: list[SimPeer]) -> int:
    return sum(peer.engine.shards.states.round_log.rounds for peer in peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--region", type=int, default=50, help="members of one region")
    parser.add_argument("--over", type=float, default=20.0, help="virtual seconds within which all peers start")
    parser.add_argument("--warm-up", type=float, default=30.0, help="virtual seconds before the measurement")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--newcomers", type=int, default=5, help="that come at the end")
    parser.add_argument("--measure", type=float, default=60.0, help="virtual seconds that are measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.set_threshold(*COLLECT_AFTER)
    for n_peers in options.peers:
        o = trio.run(measured, n_peers, options, clock=MockClock(autojump_threshold=0))
        print(
            f"{o.n_peers:5} peers in {o.n_regions:2} regions, of which each knows {o.n_known:.0f}: {o.cpu_ms:5.2f} ms and "
            f"{o.control_bytes_s:5.0f} bytes of control a peer and second (gossip {o.gossip_bytes_s:.0f}, exchanges and "
            f"probes {o.members_bytes_s:.0f}), {o.rounds:.1f} rounds a shard, {o.n_wrongly_dead} dead wrongly; newcomers "
            f"are in after {spread(o.joined_s)}, their first push counts after {spread(o.counted_s)}; {o.cpu_s:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
