"""Members that push against the others in every round are named by all, and weigh nothing."""

import msgspec
import pytest
import torch
import trio

from legion_p2p.sim.attackers import ATTACKS, Conspiracy
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.test_witness import WATCHED, accusations

GOAL = 5.0  # of every parameter: too far away to be reached, so that pushes of different members have something in common
SCREENED = msgspec.structs.replace(WATCHED, screening="trend", shard_elements=32)


def noisy_step(peer: SimPeer) -> None:
    """Towards the goal of all, by a gradient that is half noise."""
    noise = torch.randn(peer.theta.shape, generator=noises.setdefault(peer.name, torch.Generator().manual_seed(len(noises))))
    with torch.no_grad():
        peer.theta.add_(0.005 * (GOAL - peer.theta) + 0.02 * noise)


noises: dict[str, torch.Generator] = {}


@pytest.mark.parametrize("attack", ["flip", "IPM"])
async def test_liars_are_named_by_all_and_nobody_else_is(attack: str, autojump_clock: object) -> None:
    async with Swarm(round=SCREENED, numel=64, local_step=noisy_step) as swarm:
        honest = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        slow = await swarm.add("slow", step_s=2.0)
        hostile = await swarm.add("x", weight=0, step_s=0.5)
        conspiracy = Conspiracy(ATTACKS[attack])
        conspiracy.overhear([*honest, slow])
        conspiracy.turn([hostile])
        await trio.sleep(80)

        for peer in honest:
            named = {e.fields["peer"] for e in peer.events_named("member.discounted")}
            assert named == {hostile.id}
        assert accusations(swarm) == [], "owners do as the rule says, and standbys compute the same"
        assert swarm.agree()
