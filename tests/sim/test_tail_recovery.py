"""What a dead owner published last and one other member has is not lost, though who takes over never got it."""

from collections.abc import Iterable

import pytest
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.test_busy import Occupied

DEAD_WITHIN_S = 60


def spec(numel: int, push_codec: str = "fp32") -> RoundSpec:
    return RoundSpec(local_steps=10, push_codec=push_codec, update_codec="fp32", aggregation="mean", shard_elements=numel)


async def with_one_survivor(swarm: Swarm, n: int, which: int = 0) -> tuple[SimPeer, list[SimPeer], int, bytes]:
    """`n` peers; the owner's newest version has reached one of them, which does not stand by.

    Returns the owner, the others, and the version and its digest.
    """
    for i in range(n):
        await swarm.add(f"p{i}")
    await swarm.until(swarm.owners_agree, 60, "one view of who owns what")
    by_id = {peer.id: peer for peer in swarm.living()}
    ownership = swarm.living()[0].engine.shards.ownership(0)
    owner = by_id[ownership.owner]
    living = [peer for peer in by_id.values() if peer is not owner]
    survivor = [peer for peer in living if peer.id != ownership.standby][which]
    await swarm.until(lambda: all_at_least(living, 3), 120, "rounds")
    deliver = owner.engine.shards.forwarder.deliver

    async def only_to_the_survivor(replica, send, update):
        if send.peer == survivor.id:
            await deliver(replica, send, update)

    owner.engine.shards.forwarder.deliver = only_to_the_survivor
    before = max(peer.versions()[0] for peer in living)
    await swarm.until(lambda: survivor.versions()[0] > before + 1, 60, "a version that only two have")
    version, digest = survivor.versions()[0], survivor.digests()[0]
    assert owner.engine.shards.replicas[0].chain.passed(version, digest)
    assert sum(peer.versions()[0] >= version for peer in living) == 1
    await trio.sleep(owner.engine.members.config.announce_s)  # what it holds has got about
    return owner, living, version, digest


def all_at_least(peers: Iterable[SimPeer], version: int) -> bool:
    return all(min(peer.versions()) >= version for peer in peers)


async def next_owner_has_it(swarm: Swarm, living: list[SimPeer], version: int, digest: bytes) -> bool:
    """Whether the one who owns the shard now went on from this version, not from an older one."""
    await swarm.until(lambda: all_at_least(living, version + 2), DEAD_WITHIN_S, "versions go on")
    owner = next(peer for peer in living if peer.engine.shards.ownership(0).owner == peer.id)
    return owner.engine.shards.replicas[0].chain.passed(version, digest)


async def test_of_more_members_than_are_asked_the_one_who_has_it_is(autojump_clock):
    async with Swarm(round=spec(64), numel=64) as swarm:
        owner, living, version, digest = await with_one_survivor(swarm, 20)
        await swarm.kill(owner.name)

        assert await next_owner_has_it(swarm, living, version, digest)


@pytest.mark.parametrize("which", range(2))
async def test_a_survivor_that_is_busy_is_asked_again(which, autojump_clock):
    async with Swarm(round=spec(64), numel=64) as swarm:
        owner, living, version, digest = await with_one_survivor(swarm, 4, which)
        occupied = [Occupied(peer, times=1, retry_s=0.8) for peer in living]
        await swarm.kill(owner.name)

        assert await next_owner_has_it(swarm, living, version, digest)
        assert any(one.at_s for one in occupied)


@pytest.mark.parametrize("which", range(2))
async def test_a_survivor_on_a_slow_line_gets_the_time_that_it_takes(which, autojump_clock):
    numel = 250_000
    async with Swarm(
        round=spec(numel, "topk64-2bit"), numel=numel, step_s=1.0, world=World(delay_s=0.02, up_bytes_s=4e5)
    ) as swarm:
        owner, living, version, digest = await with_one_survivor(swarm, 4, which)
        await swarm.kill(owner.name)

        assert await next_owner_has_it(swarm, living, version, digest)
