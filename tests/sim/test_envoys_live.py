"""Regions that know only a few of each other's members, in virtual time: they sync, newcomers find theirs, all finish alike."""

from legion_p2p.core.envoys import N_ENVOYS
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

N_HERE = 6
ROUND = RoundSpec(local_steps=5, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=32, sync_every=1)


def knows(peer: SimPeer) -> dict[str, int]:
    """How many members of each region it knows, itself included."""
    regions = [a.region for a in peer.engine.members.roster.everyone()]
    return {region: regions.count(region) for region in sorted(set(regions))}


def settled(peer: SimPeer, other: str, n_here: int) -> bool:
    return knows(peer) == {peer.engine.region: n_here, other: N_ENVOYS}


async def test_regions_that_know_only_envoys_of_each_other_sync_and_finish_and_a_newcomer_finds_its_own(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.5) as swarm:
        west = [await swarm.add(f"w{i}", region="west") for i in range(N_HERE)]
        east = [await swarm.add(f"e{i}", region="east") for i in range(N_HERE)]
        await swarm.until(
            lambda: all(settled(p, "east", N_HERE) for p in west) and all(settled(p, "west", N_HERE) for p in east), 60
        )

        # it knows nobody of its own region but by what those of the other one say
        newcomer = await swarm.add("w-late", region="west")
        await swarm.until(lambda: all(settled(p, "east", N_HERE + 1) for p in [*west, newcomer]), 60)
        here = [*west, newcomer]
        await swarm.until(lambda: len({p.engine.shards.ownership(0) for p in here}) == 1, 30, "the newcomer knows who owns what")
        seen: dict[str, int] = {}

        def has_synced_hidden() -> bool:
            """An owner that is no envoy has synced since the last look."""
            for peer in [*here, *east]:
                n = len(peer.events_named("sync.done"))
                if not peer.engine.members.own.now().envoy and n > seen.get(peer.name, n):
                    return True
                seen[peer.name] = n
            return False

        await swarm.until(has_synced_hidden, 60, "an owner that is no envoy has synced")

        dead = [e for p in swarm.living() for e in p.events_named("member.dead")]
        assert not dead
        await swarm.settle()
