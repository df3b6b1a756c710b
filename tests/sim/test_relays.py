"""Members with much upload that meet other regions for owners with little, over the real engine in virtual time."""

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import RelayRequest, encode
from legion_p2p.errors import RefusedError
from legion_p2p.services.inter_region.copies import RegionCopy
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor import codec

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", norm_cap=3.0, shard_elements=32, sync_every=2)
LITTLE, MUCH = Bandwidth(upload_bps=1e6, download_bps=50e6), Bandwidth(upload_bps=500e6, download_bps=500e6)


async def two_regions(swarm: Swarm, *, relay: bool = True, other: str = "east") -> tuple[list[SimPeer], list[SimPeer], SimPeer]:
    """Two owners each, and in the west one with much upload that owns nothing; with `relay` it has volunteered.

    The `other` region begins the meetings if its label sorts before "west".
    """
    east = [await swarm.add(name, region=other) for name in "ab"]
    west = [await swarm.add(name, region="west") for name in "cd"]
    big = await swarm.add("big", region="west", weight=0.0, relay=relay)
    for peer in (*east, *west):
        swarm.world.bandwidths[peer.id] = LITTLE
        peer.rate = 0.01
    swarm.world.bandwidths[big.id] = MUCH
    big.max_steps = 0
    return east, west, big


def apart(east: list[SimPeer], west: list[SimPeer]) -> float:
    return float(torch.dist(east[0].engine.common_parameters(), west[0].engine.common_parameters()))


def n_met(peers: list[SimPeer], after: float = 0.0) -> int:
    return sum(event.at >= after for peer in peers for event in peer.events_named("sync.done"))


def copies(east: list[SimPeer], west: list[SimPeer], big: SimPeer) -> torch.Tensor:
    """What both regions hold, all that is on its way included."""
    whole = []
    for shard in range(2):
        for region in (east, west):
            (owner,) = [p for p in region if p.engine.shards.ownership(shard).owner == p.id]
            whole.append(RegionCopy(owner.engine.shards.replicas[shard]).value())
        whole[-1] = whole[-1] - big.engine.region_sync.relay.copy(big.engine.shards.replicas[shard]).undelivered
    return torch.stack([torch.cat(whole[::2]), torch.cat(whole[1::2])])


async def test_a_relay_meets_the_other_region_and_the_owners_only_take_what_comes_of_it(autojump_clock):
    far = []
    for relay in (True, False):
        async with Swarm(round=ROUND, step_s=0.2) as swarm:
            east, west, big = await two_regions(swarm, relay=relay)
            await trio.sleep(15)
            from_s = trio.current_time()
            await trio.sleep(30)

            far.append(apart(east, west))
            assert bool(n_met([big])) == relay
            assert bool(n_met(west, from_s)) != relay  # not a byte of their upload goes into it
            assert n_met(east, from_s) > 10
            assert any(peer.events_named("sync.relayed") for peer in west) == relay
    assert far[0] < 1.3 * far[1]  # regions keep together as well with a relay as without


async def test_with_a_relay_the_mean_of_both_stays(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        east, west, big = await two_regions(swarm)
        await trio.sleep(30)
        for peer in swarm.living():
            peer.hung = True
        await trio.sleep(10)
        before, meetings = copies(east, west, big), n_met([big])
        for peer in swarm.living():
            for replica in peer.engine.shards.replicas.values():
                peer.engine.region_sync.schedule.last_sync(replica).times.last -= 100
                replica.chain.version += 1  # as by a round that changed nothing
                replica.notify.notify()
        await trio.sleep(10)

        after = copies(east, west, big)
        assert n_met([big]) > meetings
        assert torch.dist(*after) < 0.9 * torch.dist(*before)
        assert torch.allclose(after.mean(0), before.mean(0), atol=1e-6)


async def test_when_the_relay_dies_in_a_meeting_the_owners_go_on_themselves(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2, world=World(delay_s=0.1)) as swarm:
        east, west, big = await two_regions(swarm, other="zone")
        await trio.sleep(25)
        near = apart(east, west)
        pairs = big.engine.region_sync.pairs
        await swarm.until(lambda: any(pair.is_asking for of in pairs._states.values() for pair in of.values()), 30)
        await swarm.kill("big")
        killed_at = trio.current_time()
        await trio.sleep(25)

        assert n_met(west, killed_at) > 4
        assert apart(east, west) < 1.3 * near


async def test_a_relay_that_brings_nothing_is_replaced_by_the_owner(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        _, west, big = await two_regions(swarm)
        big.engine.region_sync.schedule.due = lambda replica: None
        big.engine.region_sync.relay.deliver = _never
        await trio.sleep(40)

        assert n_met(west) > 2


async def test_a_relay_that_leaves_gives_away_what_it_has_not_delivered(autojump_clock):
    sparse = msgspec.structs.replace(ROUND, sync_codec="topk64-2bit", shard_elements=0)
    async with Swarm(round=sparse, numel=1 << 13, shape=(128, 64), step_s=0.2) as swarm:
        _, west, big = await two_regions(swarm)
        await trio.sleep(20)
        (copy,) = big.engine.region_sync.relay._copies.values()
        left = float(copy.undelivered.norm())
        owner = next(p for p in west if p.engine.shards.owned())
        began = trio.current_time()

        await swarm.leave(big.name)
        await big.ended.wait()

        assert float(copy.undelivered.norm()) < 0.05 * left
        assert any(event.at >= began for event in owner.events_named("sync.relayed"))
        assert trio.current_time() - began < 5


async def _never(*args: object) -> str:
    return ""


async def test_what_a_lying_relay_brings_is_refused_and_moves_nothing(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        east, west, big = await two_regions(swarm)
        await trio.sleep(20)
        near = apart(east, west)
        (owner,) = [p for p in west if p.engine.shards.ownership(0).owner == p.id]
        lie = codec.get("int8").encode(1e6 * torch.ones(32))
        for number in range(3):
            with pytest.raises(RefusedError, match="a step of norm") as refused:
                await big.engine.messenger.request(owner.id, encode(RelayRequest(big.engine.id, 0, number, "int8", lie)))
            assert refused.value.kind == "DecodeError"
        with pytest.raises(RefusedError, match="this run allows bf16, int8"):
            await big.engine.messenger.request(owner.id, encode(RelayRequest(big.engine.id, 0, 9, "fp32", lie)))
        with pytest.raises(RefusedError, match="not a relay"):
            await west[0].engine.messenger.request(west[1].id, encode(RelayRequest(big.engine.id, 0, 9, "int8", lie)))
        assert apart(east, west) < 1.1 * near


async def test_a_relay_that_steps_down_gives_away_what_it_has_not_delivered(autojump_clock):
    sparse = msgspec.structs.replace(ROUND, sync_codec="topk64-2bit")
    async with Swarm(round=sparse, step_s=0.2) as swarm:
        _, west, big = await two_regions(swarm)
        await trio.sleep(20)
        carried = big.engine.region_sync.relay
        await swarm.until(lambda: any(copy.undelivered.norm() > 0 for copy in carried._copies.values()), 30)
        swarm.world.bandwidths[big.id] = LITTLE
        big.engine.members.announcer.announce_soon()
        await trio.sleep(15)

        assert not carried._copies
        assert n_met(west) > 0
