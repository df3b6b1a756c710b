"""Synchronous runs in virtual time: every step that pushes waits for its round."""

import pytest
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm


@pytest.mark.parametrize(("delay_s", "synchronous"), [(0.1, True), (0.001, True), (0.1, False)])
async def test_training_waits_for_the_round_where_the_run_says_so(delay_s, synchronous, autojump_clock):
    rounds = RoundSpec(
        local_steps=5, push_codec="fp32", update_codec="fp32", quorum=1, synchronous=synchronous, shard_elements=32
    )
    async with Swarm(round=rounds, step_s=0.1, world=World(1, delay_s=delay_s)) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await trio.sleep(20)
        steps, blocked_s, versions = a.local_trainer.steps, a.blocked_s, a.versions()

        await trio.sleep(20)

        steps, n_rounds = a.local_trainer.steps - steps, a.versions()[0] - versions[0]
        share = (a.blocked_s - blocked_s) / 20
        assert share == pytest.approx(1 - steps * 0.1 / 20, abs=0.02)
        if synchronous:
            assert n_rounds == pytest.approx(steps / 5, abs=2)
            assert share > 0.25 if delay_s == 0.1 else share < 0.1  # there and back, beside half a second of training
        else:
            assert share == 0 and steps > 195
        assert b.local_trainer.steps > 0


async def test_regions_of_a_synchronous_run_meet_and_nobody_waits_for_that(autojump_clock):
    rounds = RoundSpec(
        local_steps=5, push_codec="int8", update_codec="int8", quorum=1, synchronous=True, shard_elements=32, sync_every=2
    )
    far = {}
    swarm = Swarm(round=rounds, step_s=0.1, world=World(1, delay_s=lambda a, b: 0.001 if far[a] == far[b] else 0.2))
    far.update({swarm.identity(name).peer_id: name in "cd" for name in "abcd"})
    async with swarm:
        peers = [await swarm.add(name, region="west" if name in "cd" else "east") for name in "abcd"]
        await trio.sleep(10)
        blocked_s = peers[0].blocked_s

        await trio.sleep(10)

        assert sum(len(peer.events_named("sync.done")) for peer in peers) > 10
        refused_at = [event.at for peer in peers for event in peer.events_named("sync.refused")]
        assert not [at for at in refused_at if at > 10], "none once all four are there"
        assert peers[0].blocked_s - blocked_s < 1
