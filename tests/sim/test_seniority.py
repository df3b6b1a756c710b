"""Runs in which owning takes time, and shards are dealt out again now and then."""

from typing import Any

import msgspec
import trio

from legion_p2p.core.rendezvous import ranking, salted_key
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.test_witness import accusations

PATIENT = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=16, owner_rounds=8)


def owners(peer: SimPeer) -> list[Any]:
    return [peer.engine.shards.ownership(shard).owner for shard in range(4)]


def all_see_the_same(swarm: Swarm) -> bool:
    living = swarm.living()
    return all(owners(peer) == owners(living[0]) for peer in living)


async def test_shards_are_dealt_out_again_and_a_newcomer_owns_only_later(autojump_clock: object) -> None:
    async with Swarm(round=msgspec.structs.replace(PATIENT, verify="late")) as swarm:
        for name in "abcd":
            await swarm.add(name, step_s=0.5)
        dealt = {tuple(owners(swarm.living()[0]))}
        for _ in range(80):
            await trio.sleep(1)
            dealt.add(tuple(owners(swarm.living()[0])))
        assert len(dealt) >= 3, "16 rounds"
        assert all_see_the_same(swarm)

        newcomer = await swarm.add("late", weight=10, step_s=0.5)
        await trio.sleep(4)
        assert newcomer.engine.shards.states.complete() and newcomer.id not in owners(swarm.living()[0])
        await swarm.until(lambda: bool(newcomer.engine.shards.owned()), 60, "old enough")
        await trio.sleep(30)
        await swarm.kill("a")
        await trio.sleep(30)

        assert accusations(swarm) == []
        await swarm.settle()
        assert swarm.agree() and all_see_the_same(swarm)


async def test_a_key_that_was_made_for_a_shard_is_worth_nothing_when_its_member_may_own(autojump_clock: object) -> None:
    async with Swarm(round=PATIENT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(60)
        run, salt = peers[0].engine.id, peers[0].engine.shards.replicas[0].chain.salt
        key = salted_key(run, "", 0, salt)
        weights = {peer.id: 1.0 for peer in peers}
        name = next(
            name for name in (f"made{i}" for i in range(1000))
            if ranking(key, {**weights, swarm.identity(name).peer_id: 1.0})[0] == swarm.identity(name).peer_id
        )  # fmt: skip

        ground = await swarm.add(name, step_s=0.5)
        await trio.sleep(2)
        assert owners(peers[0])[0] != ground.id, "with the salt that it was made for"
        await swarm.until(lambda: ground.id not in peers[0].engine.members.roster.juniors, 80, "it may own")

        assert peers[0].engine.shards.replicas[0].chain.salt != salt


async def test_heavy_members_that_push_nothing_own_nothing(autojump_clock: object) -> None:
    async with Swarm(round=PATIENT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        for i in range(4):
            idle = await swarm.add(f"idle{i}", weight=10)
            idle.training = False
        await trio.sleep(40)

        assert set(owners(peers[0])) <= {peer.id for peer in peers}
        assert min(peers[0].versions()) > 8
