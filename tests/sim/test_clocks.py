"""Clocks that are set while a run trains, in virtual time."""

import pytest
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.run.clock_log import LOOK_EVERY_S
from legion_p2p.sim.swarm import Swarm

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=16)
HOUR_S = 3600.0


@pytest.mark.parametrize("set_by_s", [HOUR_S, -HOUR_S, 30 * 86400.0])
async def test_a_clock_that_is_set_is_one_line_in_the_log_and_nobody_falls_behind(autojump_clock, set_by_s: float):
    async with Swarm(round=ROUND) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        await trio.sleep(20)
        wrong, began = peers[0], peers[1].local_trainer.steps
        n_told = {peer: len(peer.events_named("member.changed")) for peer in peers}

        wrong.clock_set_s = set_by_s
        await trio.sleep(2 * LOOK_EVERY_S + 20)

        assert [event.fields["set_by_s"] for event in wrong.events_named("clock.set")] == [set_by_s]
        assert not any(peer.events_named("clock.set") for peer in peers[1:])
        assert not any(peer.events_named("run.rejoined") for peer in peers)
        assert {peer: len(peer.events_named("member.changed")) for peer in peers} == n_told
        steps = [peer.local_trainer.steps - began for peer in peers]
        assert min(steps) > 0.9 * max(steps) > 100
        await swarm.settle()


async def test_a_machine_that_sleeps_has_not_had_its_clock_set(autojump_clock):
    async with Swarm(round=ROUND) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        await trio.sleep(20)

        peers[0].clock_off_s += HOUR_S
        await swarm.until(lambda: bool(peers[0].events_named("run.rejoined")), 20, "it came back")

        assert not peers[0].events_named("clock.set")
