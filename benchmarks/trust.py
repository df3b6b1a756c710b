"""What it costs to watch owners and to weigh pushes: docs/records/trust.md.

    python benchmarks/trust.py bytes      bytes of a peer's round, with and without a standby that computes updates again
    python benchmarks/trust.py loss       CPU of a peer's round, and where training ends
    python benchmarks/trust.py takeover   seconds from the death of an owner to the next version of its shards
    python benchmarks/trust.py honest     how often versions of honest owners are taken back, while all goes wrong that may
    python benchmarks/trust.py cpu        CPU of a round under each rule, and of computing an update again

All but the last one run the real engine in virtual time; the last one measures this machine, with one thread.
"""

import argparse
import random
import statistics
import time
from collections import Counter
from functools import partial

import msgspec
import torch
import trio
from trio.testing import MockClock

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Inclusion, PushClaim, UpdateHeader
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush, payload_digest
from legion_p2p.services.shards.recount import account_of, recount
from legion_p2p.services.shards.replica import combine
from legion_p2p.services.shards.states import AcceptedUpdate
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.tensor import codec
from legion_p2p.tensor.outer import OuterState
from legion_p2p.tensor.robust.rules import names

N_PEERS = 8  # whose pushes are combined
N_WATCHED = 5  # in a run in virtual time
NUMEL, SHARDS = 1 << 15, 4
WARM_UP_S, MEASURED_S = 25.0, 30.0  # virtual
STEP_S = 1.0
CODECS = ("int8", "topk64-2bit")
TAKEN_N = 1024  # elements of a shard of which owners die
N_MISHAPS = 16  # in a run whose owners are honest
RULES_N = 25_000_000 // 16  # elements of a shard of 25 million


def rounds_of(name: str, verify: str) -> RoundSpec:
    return RoundSpec(local_steps=10, push_codec=name, update_codec=name, shard_elements=NUMEL // SHARDS, verify=verify)  # type: ignore[arg-type]


class Counted(World):
    """Counts what peers send, by the kind of request; replies are counted together."""

    def __init__(self, **how: object) -> None:
        super().__init__(**how)  # type: ignore[arg-type]
        self.sent: Counter[str] = Counter()

    async def travel(self, source: PeerId, target: PeerId, n_bytes: int, priority: Priority) -> None:
        self.sent["all"] += n_bytes
        await super().travel(source, target, n_bytes, priority)


async def bytes_of(name: str, verify: str) -> tuple[float, float]:
    """Bytes that a peer sends in a round of all shards, and rounds in the time that was measured."""
    world = Counted()
    shape = (NUMEL // 512, 512)
    async with Swarm(numel=NUMEL, shape=shape, round=rounds_of(name, verify), world=world, step_s=STEP_S) as swarm:
        for i in range(N_WATCHED):
            await swarm.add(f"p{i}")
        await trio.sleep(WARM_UP_S)
        before, first = world.sent["all"], statistics.mean(swarm.living()[0].versions())
        await trio.sleep(MEASURED_S)
        rounds = statistics.mean(swarm.living()[0].versions()) - first
        return (world.sent["all"] - before) / rounds / N_WATCHED, rounds


def show_bytes() -> None:
    print("| codec | verify | bytes a peer sends in a round | of a parameter | beside none |\n|---|---|---|---|---|")
    for name in CODECS:
        usual = 0.0
        for verify in ("none", "late", "strict"):
            sent, _ = trio.run(bytes_of, name, verify, clock=MockClock(autojump_threshold=0))
            usual = usual or sent
            print(f"| {name} | {verify} | {sent:,.0f} | {sent / NUMEL:.3f} | {sent / usual:.2f} |", flush=True)


async def loss_of(name: str, verify: str) -> tuple[float, float]:
    """CPU seconds for a peer's round of all shards, and how far the common copy is from the mean of the targets."""
    shape = (NUMEL // 512, 512)
    async with Swarm(numel=NUMEL, shape=shape, round=rounds_of(name, verify), step_s=STEP_S) as swarm:
        peers = [await swarm.add(f"p{i}") for i in range(N_WATCHED)]
        await trio.sleep(WARM_UP_S)
        first, began = statistics.mean(peers[0].versions()), time.process_time()
        await trio.sleep(4 * MEASURED_S)
        took, rounds = time.process_time() - began, statistics.mean(peers[0].versions()) - first
        await swarm.settle()
        replicas = peers[0].engine.shards.replicas
        common = torch.cat([replicas[shard].reference for shard in sorted(replicas)])
        best = torch.stack([peer.target for peer in peers]).mean(dim=0)
        return took / rounds / N_WATCHED, float((common - best).norm() / best.norm())


def show_loss() -> None:
    print("| codec | verify | CPU of a peer in a round | distance that is left |\n|---|---|---|---|")
    for name in CODECS:
        for verify in ("none", "late", "strict"):
            took, distance = trio.run(loss_of, name, verify, clock=MockClock(autojump_threshold=0))
            print(f"| {name} | {verify} | {1000 * took:.1f} ms | {distance:.4f} |", flush=True)


async def takeover_of(verify: str, n: int) -> list[float]:
    """From the death of an owner to the next version of each of its shards that was made without it."""
    took: list[float] = []
    rounds = msgspec.structs.replace(rounds_of("int8", verify), shard_elements=TAKEN_N)
    async with Swarm(numel=4 * TAKEN_N, round=rounds, step_s=STEP_S) as swarm:
        for i in range(N_WATCHED):
            await swarm.add(f"p{i}")
        for i in range(n):
            await trio.sleep(40)
            victim = max(swarm.living(), key=lambda peer: len(peer.engine.shards.owned()))
            shards = set(victim.engine.shards.owned())
            await swarm.kill(victim.name)
            began = trio.current_time()
            chains = {shard: swarm.living()[0].engine.shards.replicas[shard].chain for shard in shards}
            while shards:
                await trio.sleep(0.05)
                done = {shard for shard in shards if chains[shard].owner != victim.id}
                took += [trio.current_time() - began] * len(done)
                shards -= done
            await swarm.add(f"late{i}")
    return took


def show_takeover(n: int) -> None:
    print("| verify | to the next version, median | slowest |\n|---|---|---|")
    for verify in ("none", "late", "strict"):
        took = trio.run(takeover_of, verify, n, clock=MockClock(autojump_threshold=0))
        print(f"| {verify} | {statistics.median(took):.1f} s | {max(took):.1f} s |", flush=True)


async def honest(seed: int) -> tuple[int, int, int, Counter[str]]:
    """A run in which nobody lies: versions made, how often members applied one, how many of those they took back, and why."""
    rng, reasons = random.Random(seed), Counter[str]()
    n_applied = n_taken_back = 0
    rounds = msgspec.structs.replace(rounds_of("int8", "late"), shard_elements=16)
    async with Swarm(seed=seed, numel=64, round=rounds, step_s=0.5) as swarm:
        made: set[tuple[int, int, bytes]] = set()
        peers = []

        async def come(i: int) -> None:
            peer = await swarm.add(f"p{i}", step_s=2.0 if i % 4 == 3 else 0.5)
            peers.append(peer)

            def accepted(update: AcceptedUpdate) -> None:
                nonlocal n_applied
                n_applied += 1
                made.add((update.header.shard, update.header.version, update.header.digest))

            peer.engine.shards.states.updated.add(accepted)

        for i in range(N_WATCHED):
            await come(i)
        for i in range(N_MISHAPS):
            await trio.sleep(rng.uniform(4, 16))
            victim = rng.choice(swarm.living())
            match i % 4:
                case 0:
                    await swarm.kill(victim.name)
                    await come(N_WATCHED + i)
                case 1:
                    swarm.world.freeze(victim.id)  # what a standby or an owner has to do waits
                    await trio.sleep(rng.uniform(1, 8))
                    swarm.world.thaw(victim.id)
                case 2:
                    wall = swarm.world.partition([victim.id], [rng.choice([p for p in swarm.living() if p is not victim]).id])
                    await trio.sleep(rng.uniform(1, 12))
                    swarm.world.heal(wall)
                case 3:
                    await swarm.leave(victim.name)
                    await come(N_WATCHED + i)
        await trio.sleep(20)
        for event in [event for peer in peers for event in peer.events_named("shard.taken_back")]:
            n_taken_back += event.fields["n_versions"]
            reasons[f"{event.fields['reason']} (version {event.fields['version']})"] += 1
        return len(made), n_applied, n_taken_back, reasons


def show_honest(n: int) -> None:
    print("| seed | versions | applied by members | taken back | share |\n|---|---|---|---|---|")
    sums = [0, 0, 0]
    for seed in range(n):
        n_made, n_applied, n_back, reasons = trio.run(honest, seed, clock=MockClock(autojump_threshold=0))
        sums = [a + b for a, b in zip(sums, (n_made, n_applied, n_back), strict=True)]
        print(f"| {seed} | {n_made:,} | {n_applied:,} | {n_back} | {n_back / n_applied:.3%} |", *reasons.items(), flush=True)
    print(f"| all | {sums[0]:,} | {sums[1]:,} | {sums[2]} | {sums[2] / sums[1]:.3%} |")


def show_cpu(n_elements: int) -> None:
    """Of one shard of sixteen, times sixteen."""
    torch.set_num_threads(1)
    members = sorted((Identity(bytes([i]) * 32) for i in range(N_PEERS)), key=lambda member: member.peer_id)
    pushes = []
    for member in members:
        payload = codec.get("int8").encode(torch.randn(n_elements, dtype=torch.float32, device="cpu"))
        claim = PushClaim("run", 0, member.peer_id, 7, 0, 100, "int8", payload_digest(payload))
        pushes.append(SignedPush.by(member, claim, payload))
    closed = Closed(7, tuple(Contribution(PeerId(p.claim.peer), 0, 7, 100, 0.0) for p in pushes), N_PEERS, ())
    reference = torch.zeros(n_elements, dtype=torch.float32, device="cpu")
    usual = 0.0
    print("| rule | CPU of a round | beside the mean | computed again |\n|---|---|---|---|")
    for name in names():
        spec = RoundSpec(push_codec="int8", update_codec="int8", aggregation=name)  # type: ignore[arg-type]

        def make(spec: RoundSpec = spec) -> object:
            decoded = {PeerId(p.claim.peer): codec.get("int8").decode(p.payload, n_elements) for p in pushes}
            return combine(reference, None, OuterState(), closed, decoded, spec, codec.get("int8"))

        made, took = timed(make)
        account = account_of(None, OuterState(), pushes, made, made.payload)  # type: ignore[arg-type, attr-defined]
        included = tuple(Inclusion(peer, 0) for peer in made.used)  # type: ignore[attr-defined]
        header = UpdateHeader("run", 0, 8, b"b" * 32, made.digest, "owner", "int8", included, (), 8, 1, account)  # type: ignore[attr-defined]
        inputs = RoundInputs(header, None, OuterState(), pushes, made.payload)  # type: ignore[attr-defined]
        found, again = timed(partial(recount, inputs, account, spec, codec.get, n_elements))
        assert found.finding.value == "right"  # type: ignore[attr-defined]
        usual = usual or took
        print(f"| {name} | {16 * took:.2f} s | {took / usual:.1f} | {16 * again:.2f} s |", flush=True)


def timed(fn: object) -> tuple[object, float]:
    """What it gives, and the CPU seconds of the faster of two calls."""
    best = float("inf")
    for _ in range(2):
        began = time.process_time()
        made = fn()  # type: ignore[operator]
        best = min(best, time.process_time() - began)
    return made, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("bytes", "loss", "takeover", "honest", "cpu"))
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--elements", type=int, default=RULES_N, help="of a shard")
    args = parser.parse_args()
    if args.what == "bytes":
        show_bytes()
    elif args.what == "loss":
        show_loss()
    elif args.what == "takeover":
        show_takeover(args.deaths)
    elif args.what == "honest":
        show_honest(args.seeds)
    else:
        show_cpu(args.elements)


if __name__ == "__main__":
    main()
