"""Two regions that train apart and meet now and then, in virtual time, over the real engine."""

import itertools

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.inter_region.copies import RegionCopy
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

LOSSY = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=32, sync_every=2)


async def two_regions(swarm: Swarm, *, hung: bool = False) -> tuple[list[SimPeer], list[SimPeer]]:
    for name in "abcd":
        peer = await swarm.add(name, region="east" if name in "ab" else "west")
        peer.rate, peer.hung = 0.01, hung
    a, b, c, d = swarm.living()
    return [a, b], [c, d]


def apart(east: list[SimPeer], west: list[SimPeer]) -> float:
    return float(torch.dist(east[0].engine.common_parameters(), west[0].engine.common_parameters()))


def n_met(peer: SimPeer, *, after: float = 0.0) -> int:
    return sum(event.at >= after for event in peer.events_named("sync.done"))


async def test_two_regions_come_to_the_mean_of_all_targets(autojump_clock):
    seen: dict[tuple[str, int, int], bytes] = {}
    async with Swarm(round=LOSSY, step_s=0.2) as swarm:
        east, west = await two_regions(swarm)
        for _ in range(100):
            await trio.sleep(1)
            for peer in swarm.living():
                for shard, (version, digest) in enumerate(zip(peer.versions(), peer.digests(), strict=True)):
                    assert seen.setdefault((peer.engine.region, shard, version), digest) == digest

        mean = torch.stack([peer.target for peer in swarm.living()]).mean(0)
        alone = torch.dist(*(torch.stack([peer.target for peer in region]).mean(0) for region in (east, west)))
        middle = (east[0].engine.common_parameters() + west[0].engine.common_parameters()) / 2
        assert torch.dist(middle, mean) < 0.05 * alone
        assert apart(east, west) < 0.25 * alone  # where the pull of both targets and the moving rate balance
        later = [e for peer in swarm.living() for e in peer.events_named("sync.done") if e.at > 30]
        assert later and not any(event.fields["whole"] for event in later)  # both go by what they know of each other
        n_rounds = min(east[0].versions() + west[0].versions())
        assert n_met(east[0]) + n_met(east[1]) >= 2 * (n_rounds // 2 - 4)  # of two shards, every second version


@pytest.mark.parametrize("rule", ["center", "nesterov"])
async def test_the_other_rules_bring_regions_together_as_well(rule, autojump_clock):
    async with Swarm(round=msgspec.structs.replace(LOSSY, sync_rule=rule), step_s=0.2) as swarm:
        east, west = await two_regions(swarm)
        north = [await swarm.add("e", region="north")] if rule == "center" else []
        await trio.sleep(100)

        regions = [region for region in (east, west, north) if region]
        mean = torch.stack([torch.stack([peer.target for peer in region]).mean(0) for region in regions]).mean(0)
        middle = torch.stack([region[0].engine.common_parameters() for region in regions]).mean(0)
        alone = torch.dist(*(torch.stack([peer.target for peer in region]).mean(0) for region in (east, west)))
        assert apart(east, west) < 0.4 * alone
        assert torch.dist(middle, mean) < 0.2 * alone  # the center is behind, and moves as well


async def test_two_regions_that_ask_each_other_at_the_same_moment_meet(autojump_clock):
    """Answers take longer than rounds, so both are due while they wait."""
    rounds = msgspec.structs.replace(LOSSY, local_steps=5, sync_every=1)
    world = World(delay_s=lambda a, b: 0.0025 if {a, b} <= east_ids or not {a, b} & east_ids else 0.06)
    swarm = Swarm(round=rounds, step_s=0.02, world=world)
    east_ids = {swarm.identity(name).peer_id for name in "ab"}
    async with swarm:
        east, _ = await two_regions(swarm)
        await trio.sleep(4)
        began, before = trio.current_time(), east[0].versions()

        await trio.sleep(4)

        n_rounds = sum(now - then for now, then in zip(east[0].versions(), before, strict=True))
        met = sum(n_met(peer, after=began) for peer in east)
        assert n_rounds > 60 and met > 0.4 * n_rounds  # every second round: an answer takes one


async def test_a_meeting_moves_both_by_the_same_so_their_mean_stays(autojump_clock):
    """Nobody trains any more, and what they hold, with what owners have still to publish, is counted before and after."""
    async with Swarm(round=LOSSY, step_s=0.2) as swarm:
        east, west = await two_regions(swarm)
        await trio.sleep(30)
        meetings = sum(n_met(peer) for peer in swarm.living())
        assert meetings > 4
        for peer in swarm.living():
            peer.hung = True
        await trio.sleep(30)

        def copy(region: list[SimPeer], shard: int) -> torch.Tensor:
            (owner,) = [p for p in region if p.engine.shards.ownership(shard).owner == p.id]
            return RegionCopy(owner.engine.shards.replicas[shard]).value()

        before = [(copy(east, s) + copy(west, s)) / 2 for s in range(2)]
        distance = [torch.dist(copy(east, s), copy(west, s)) for s in range(2)]
        for region in (east, west):
            for peer in region:
                for met in peer.engine.region_sync.schedule._last.values():
                    met.times.last -= 100
                for replica in peer.engine.shards.replicas.values():
                    replica.chain.version += 1  # as by rounds that changed nothing
                    replica.notify.notify()
        await trio.sleep(10)

        assert sum(n_met(peer) for peer in swarm.living()) > meetings
        for s in range(2):
            assert torch.dist(copy(east, s), copy(west, s)) < 0.9 * distance[s]
            assert torch.allclose((copy(east, s) + copy(west, s)) / 2, before[s], atol=1e-6)


@pytest.mark.parametrize("rule", ["elastic", "center", "nesterov"])
async def test_a_region_that_is_cut_off_goes_on_and_comes_back(rule, autojump_clock):
    async with Swarm(round=msgspec.structs.replace(LOSSY, sync_rule=rule), step_s=0.2) as swarm:
        east, west = await two_regions(swarm)
        await trio.sleep(40)
        near = apart(east, west)

        swarm.world.partition({p.id for p in east}, {p.id for p in west})
        await trio.sleep(20)
        before = [peer.versions() for peer in swarm.living()]
        await trio.sleep(30)
        assert all(now[0] > then[0] + 9 for now, then in zip((p.versions() for p in swarm.living()), before, strict=True))
        far = apart(east, west)
        assert far > 2 * near
        swarm.world.heal()

        await swarm.until(lambda: apart(east, west) < 1.5 * near, 300, "near each other again")
        assert not any(peer.events_named("run.rejoining") for peer in swarm.living())  # each region went on as it was


async def test_two_that_meet_first_after_long_approach_each_other_step_by_step(autojump_clock):
    async with Swarm(round=msgspec.structs.replace(LOSSY, local_steps=2), step_s=0.25) as swarm:
        east, west = await two_regions(swarm, hung=True)
        swarm.world.partition({p.id for p in east}, {p.id for p in west})
        for peer in swarm.living():
            peer.hung, peer.target = False, 1.0 + 0.3 * peer.target
        await trio.sleep(60)
        assert not any(n_met(peer) for peer in swarm.living())
        swarm.stop_training()  # what moves them from here on is that they meet
        for peer in swarm.living():
            peer.max_steps = None
            peer.rate = 0.0
        far = apart(east, west)

        swarm.world.heal()
        distances = [far]
        while distances[-1] >= 0.05 * far and len(distances) < 100:
            await trio.sleep(1)
            distances.append(apart(east, west))

        together = 1e-6 * far  # from there on it is rounding of fp32
        assert all(after <= 1.01 * before or after < together for before, after in itertools.pairwise(distances))
        assert distances[-1] < 0.05 * far
