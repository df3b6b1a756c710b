"""One of five members that pushes what hurts, knows what all push, and claims a thousand times its tokens."""

import pytest
import torch
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.attackers import ATTACKS, Conspiracy
from legion_p2p.sim.swarm import Swarm


async def distance_after(attack: str, rule: str) -> float:
    """Of the common model to the mean of what the honest train towards, beside how far that is from the start."""
    rounds = RoundSpec(local_steps=10, push_codec="int8", update_codec="fp32", shard_elements=32, aggregation=rule)
    async with Swarm(round=rounds, numel=64) as swarm:
        honest = [await swarm.add(name) for name in "abcd"]
        hostile = await swarm.add("x", weight=0)
        for peer in (*honest, hostile):
            peer.rate *= 2
        conspiracy = Conspiracy(ATTACKS[attack])
        conspiracy.overhear(honest)
        conspiracy.turn([hostile])
        await trio.sleep(30)
        assert conspiracy.n_changed > 20
        goal = torch.stack([swarm.target(name) for name in "abcd"]).mean(dim=0)
        return float((honest[0].engine.common_parameters() - goal).norm() / goal.norm())


async def test_where_all_are_trusted_one_attacker_is_enough(autojump_clock):
    assert not await distance_after("against", "mean") < 10  # NaN as well


@pytest.mark.parametrize("attack", ["flip", "against", "x-100", "drift", "random"])
async def test_by_default_no_attacker_moves_the_model_further_than_the_others_are_apart(autojump_clock, attack):
    """Their targets are unlike: those of the four are 1.7 times as far from their mean as that is from the start."""
    assert await distance_after(attack, "auto") < 1.7
