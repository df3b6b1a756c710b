"""What it brings that members pass updates on: bytes that each sends, and how long an update takes to reach all.

    python benchmarks/relay.py
    python benchmarks/relay.py --peers 48 --shards 16 --rounds 6

The real engine in virtual time over emulated links, every member with the same upload, `--up`, unless a row says otherwise. Each
row is run twice: owners send to everybody themselves, and members pass updates on (core/forwarding). Parameters are drawn, not
trained well: what counts is how many bytes go where and when. A round is 10 virtual seconds. Control is not counted.

| row | what |
|---|---|
| even | weights are equal: ownership is as rendezvous has it |
| one owner | one member has all the weight, and owns (nearly) all shards |
| narrow owner | the same, and that member has a quarter of the upload of the others |
| one wide | weights are equal, and one member has ten times the upload of the others |
"""

import argparse
import statistics
import time
from collections import Counter, defaultdict

import msgspec
import torch
import trio
from trio.testing import MockClock

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.forwarding import forest
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.units import parse_rate
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm

STEPS_PER_ROUND = 10
STEP_S = 1.0
WARM_UP_ROUNDS = 3  # on links that are fast enough for all that joining takes
FAST_BPS = 1e9
SETTLE_ROUNDS = 2  # until all that was sent for fast links has arrived
ROWS = ("even", "one owner", "narrow owner", "one wide")
WAYS = ("owners send", "passed on")
FAILURES = ("update.undelivered", "update.not_passed_on", "shard.fetched")
SPREAD = 0.02  # how much faster the fastest peer is than the slowest: equal ones would push at the same instant for ever
ALL = 10**6  # receivers that an owner sends to itself, where nothing is passed on


class Measured(msgspec.Struct):
    """Of one run, over the rounds that were measured."""

    sent: list[float]
    """Bytes of pushes and updates that each member sent in a round."""
    spread_s: list[float]
    """Of each update: seconds from the owner to the last member."""
    n_fetched: int
    """Updates that were sent in vain, members that did not pass any on, shards that were fetched whole."""
    owned: list[int]
    cpu_ms: float
    """Of a member in a round."""


def link_of(up_bps: float) -> LinkProfile:
    return LinkProfile(up_bps=up_bps, down_bps=10 * up_bps, rtt_s=0.04)


async def measure(row: str, args: argparse.Namespace) -> Measured:
    elements = args.elements
    rounds = RoundSpec(
        local_steps=STEPS_PER_ROUND, push_codec="int8", update_codec="int8", shard_elements=elements, aggregation="mean"
    )
    links: dict[PeerId, LinkProfile] = {}
    bulk: Counter[PeerId] = Counter()
    world = World(0, links=links)
    travel = world.travel

    async def counted(source: PeerId, target: PeerId, n_bytes: int, priority: Priority) -> None:
        if priority is not Priority.CONTROL:
            bulk[source] += n_bytes
        await travel(source, target, n_bytes, priority)

    world.travel = counted
    swarm = Swarm(numel=args.shards * elements, round=rounds, step_s=STEP_S, world=world)
    for n in range(args.peers):
        links[swarm.identity(f"peer-{n}").peer_id] = link_of(FAST_BPS)
    async with swarm:
        for n in range(args.peers):
            weight = 0.001 if n and row in ("one owner", "narrow owner") else 1.0
            swarm.start(f"peer-{n}", weight=weight, step_s=STEP_S * (1 + SPREAD * (n / args.peers - 0.5)))
            if not n:
                await swarm.peers["peer-0"].joined.wait()
        for peer in swarm.peers.values():
            await peer.joined.wait()
        await trio.sleep(WARM_UP_ROUNDS * STEPS_PER_ROUND * STEP_S)
        everyone = swarm.living()
        for n, peer in enumerate(everyone):
            factor = {"narrow owner": 0.25, "one wide": 10.0}.get(row, 1.0) if n == 0 else 1.0
            world.rates.relink(peer.id, link_of(factor * parse_rate(args.up)))
        await trio.sleep(SETTLE_ROUNDS * STEPS_PER_ROUND * STEP_S)
        for peer in everyone:
            peer.log.clear()
        bulk.clear()
        began_s, n_before = time.process_time(), statistics.fmean(statistics.fmean(peer.versions()) for peer in everyone)
        await trio.sleep(args.rounds * STEPS_PER_ROUND * STEP_S)
        spent_s = time.process_time() - began_s
        n_rounds = statistics.fmean(statistics.fmean(peer.versions()) for peer in everyone) - n_before
        came: dict[tuple[int, int], list[float]] = defaultdict(list)
        for peer in everyone:
            for event in peer.events_named("round.closed"):
                came[event.fields["shard"], event.fields["version"]].append(event.at)
        return Measured(
            [bulk[peer.id] / n_rounds for peer in everyone],
            [max(times) - min(times) for times in came.values() if len(times) == len(everyone)],
            sum(event.name in FAILURES for peer in everyone for event in peer.log),
            [len(peer.engine.shards.owned()) for peer in everyone],
            1000 * spent_s / n_rounds / len(everyone),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=24)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--elements", type=int, default=1 << 14, help="of a shard, a byte each on the wire")
    parser.add_argument("--up", default="4mbit", help="upload of a member; its download is ten times as much")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    few = forest.FEW_RECEIVERS
    print("| row | way | owners | sent, most | to mean | pass nothing on | reaches all | slowest | failed | CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in args.rows:
        for way in args.ways:
            forest.FEW_RECEIVERS = ALL if way == WAYS[0] else few
            made = trio.run(measure, row, args, clock=MockClock(autojump_threshold=0))
            own = args.shards * args.elements * 1.2  # pushes of all shards, and replies
            cells = (
                row,
                way,
                sum(n > 0 for n in made.owned),
                f"{max(made.sent) / 1e6:.2f} MB",
                f"{max(made.sent) / statistics.fmean(made.sent):.2f}",
                sum(sent < own for sent in made.sent),
                f"{statistics.median(made.spread_s):.2f} s",
                f"{max(made.spread_s):.2f} s",
                made.n_fetched,
                f"{made.cpu_ms:.0f} ms",
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
