"""Swarms that train under each policy of placement, while peers come, die and leave."""

from collections import Counter

import msgspec
import pytest
import trio

from legion_p2p.config import AUTO_WEIGHT
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.placement import HEADROOM
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm

ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=8)
WEIGHTS = {"server-1": 8.0, "server-2": 8.0, "notebook-1": 1.0, "notebook-2": 1.0}


def owned(swarm: Swarm) -> Counter[str]:
    """How many shards each peer owns, as all of them say."""
    assert swarm.owners_agree()
    names = {peer.id: peer.name for peer in swarm.living()}
    peer = swarm.living()[0]
    return Counter(names[peer.engine.shards.ownership(s).owner] for s in range(peer.engine.plan.n_shards))


def n_able(swarm: Swarm) -> set[int]:
    """How many members may own, as each peer says."""
    return {sum(a.ready for a in peer.engine.members.roster.everyone()) for peer in swarm.living()}


@pytest.mark.parametrize(("name", "n_shards"), [("rendezvous", 8), ("priority", 16), ("stable", 8)])
async def test_every_shard_keeps_one_owner_through_a_join_and_a_death(autojump_clock, name, n_shards):
    async with Swarm(round=msgspec.structs.replace(ROUND, placement=name), numel=8 * n_shards, step_s=0.2) as swarm:
        for peer, weight in WEIGHTS.items():
            await swarm.add(peer, weight=weight)
        await swarm.until(swarm.owners_agree, 10, "owners of four")
        first = owned(swarm)

        await swarm.add("server-3", weight=8.0)
        await swarm.until(lambda: n_able(swarm) == {5} and swarm.owners_agree(), 10, "owners of five")
        await swarm.kill("server-1")
        await swarm.until(swarm.owners_agree, 30, "owners without the dead")
        last = owned(swarm)
        versions = swarm.peers["notebook-1"].versions()
        await trio.sleep(8)

        assert sum(first.values()) == sum(last.values()) == n_shards
        grown = [now - then for now, then in zip(swarm.peers["notebook-1"].versions(), versions, strict=True)]
        assert min(grown) > 3, grown
        if name == "priority":
            assert set(first) == {"server-1", "server-2"} and set(last) == {"server-2", "server-3"}
        if name == "stable":
            assert max(first.values()) <= HEADROOM * n_shards * 8 / 18 + 1
        await swarm.settle(60)
        assert swarm.agree()


async def test_who_is_weighed_by_its_upload_owns_as_much_as_that_carries_and_wavering_moves_nothing(autojump_clock):
    async with Swarm(round=ROUND, numel=160, step_s=2.0) as swarm:
        for name, bps in (("fibre", 40e6), ("cable", 20e6), ("dsl", 5e6)):
            swarm.world.bandwidths[swarm.identity(name).peer_id] = Bandwidth(upload_bps=bps)
            await swarm.add(name, weight=AUTO_WEIGHT)
        first = swarm.peers["fibre"]
        await swarm.until(lambda: {m.peer_id for m in first.engine.members.roster.in_region()} != set(), 10)
        await trio.sleep(10)
        weights = {a.peer_id: a.weight for a in first.engine.members.roster.everyone()}
        before = owned(swarm)

        for n in range(20):  # a busy line measures less now and then
            swarm.world.bandwidths[first.id] = Bandwidth(upload_bps=40e6 * (0.75 if n % 2 else 1.2))
            await trio.sleep(2)

        assert {swarm.peers[name].engine.weight.value for name in swarm.peers} == set(weights.values()) == {4.0, 2.0, 0.5}
        assert owned(swarm) == before and before["fibre"] > before["dsl"]
