"""A lone peer with a slow uplink, and one that joins it."""

from itertools import pairwise

import trio

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.presets import LINKS
from legion_p2p.core.run import RoundSpec
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm

SIDE, N_SHARDS = 192, 4
ROUND = RoundSpec(**LINKS["auto"]["round"], shard_elements=SIDE * SIDE // N_SHARDS)
UP_BPS = 36e3
MODEL_S = 8 * 4 * SIDE * SIDE / UP_BPS  # as long as a megabyte takes over 256 kbit/s


async def test_a_newcomer_can_follow_the_versions_that_are_made_while_it_fetches_the_model(autojump_clock):
    world = World(3, links={})
    async with Swarm(seed=3, numel=SIDE * SIDE, shape=(SIDE, SIDE), round=ROUND, step_s=0.25, world=world) as swarm:
        for name in ("first", "second"):
            world.links[swarm.identity(name).peer_id] = LinkProfile(up_bps=UP_BPS, down_bps=1e6, rtt_s=0.02)
        first = await swarm.add("first")
        await trio.sleep(4)

        began = trio.current_time()
        second = await swarm.add("second")

        assert trio.current_time() - began < 2 * MODEL_S
        fetched = second.events_named("shard.fetched")
        assert len(fetched) == N_SHARDS  # none of them again
        assert not first.events_named("owner.stalled") + second.events_named("owner.stalled")
        for shard in range(N_SHARDS):
            at = [event.at for event in first.events_named("round.closed") if event.fields["shard"] == shard]
            assert max(later - sooner for sooner, later in pairwise(at)) < MODEL_S / 2  # nobody waits for an owner for long
