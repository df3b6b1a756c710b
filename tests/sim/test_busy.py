"""Who is told that the one it asks is busy: it comes again when it was told to, or asks another, and gets there."""

from itertools import pairwise

import pytest
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Busy
from legion_p2p.services.shards import catch_up
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

ROUND = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=2_000)
RETRY_S = 3.0
FOR_EVER = 1_000_000


class Occupied:
    """A peer that turns somebody away, and when it did."""

    def __init__(self, peer: SimPeer, whom: SimPeer | None = None, times: int = FOR_EVER, retry_s: float = RETRY_S) -> None:
        """`whom`: everybody, where nobody is named."""
        self.at_s: list[float] = []
        give = peer.engine.upload_slots.give

        async def give_later(asker, n_bytes, make, *how):
            if len(self.at_s) < times and (whom is None or asker == whom.id):
                self.at_s.append(trio.current_time())
                return Busy(round(1000 * retry_s))
            return await give(asker, n_bytes, make, *how)

        peer.engine.upload_slots.give = give_later


def pauses(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


async def swarm_of(swarm: Swarm, names: str) -> list[SimPeer]:
    peers = [await swarm.add(name) for name in names]
    await swarm.until(swarm.owners_agree, 20, "one view of who owns what")
    await trio.sleep(10)
    return peers


def roles(swarm: Swarm, shard: int = 0) -> tuple[SimPeer, SimPeer, list[SimPeer]]:
    """Owner and standby of the shard, and the others."""
    by_id = {peer.id: peer for peer in swarm.living()}
    ownership = swarm.living()[0].engine.shards.ownership(shard)
    owner, standby = by_id[ownership.owner], by_id[ownership.standby]
    return owner, standby, [peer for peer in by_id.values() if peer not in (owner, standby)]


async def test_a_member_that_is_behind_asks_its_owner_again_but_not_before_it_was_told_to(autojump_clock):
    async with Swarm(round=ROUND, numel=2_000) as swarm:
        await swarm_of(swarm, "abc")
        owner, behind, _ = roles(swarm)
        occupied = Occupied(owner, behind, times=3)
        deliver = owner.engine.shards.forwarder.deliver

        async def lose(replica, send, update):
            return None if send.peer == behind.id else await deliver(replica, send, update)

        owner.engine.shards.forwarder.deliver = lose
        version = owner.versions()[0]
        await swarm.until(lambda: len(occupied.at_s) == 3, 60, "turned away three times")
        assert behind.versions()[0] <= version

        await swarm.until(lambda: behind.versions()[0] > version, 20, "it got there")

        assert min(pauses(occupied.at_s)) >= RETRY_S


async def test_who_comes_back_asks_until_the_owner_has_room(autojump_clock):
    async with Swarm(round=ROUND, numel=2_000) as swarm:
        peers = await swarm_of(swarm, "abc")
        owner, back, _ = roles(swarm)
        swarm.world.partition({back.id}, {p.id for p in peers if p is not back})
        await trio.sleep(30)
        occupied = Occupied(owner, back, times=4)

        swarm.world.heal()
        await swarm.until(lambda: bool(back.events_named("run.rejoined")), 60, "back")

        assert len(occupied.at_s) == 4
        assert min(pauses(occupied.at_s[1:])) >= RETRY_S / 2  # the first one it asked before it knew that it had been away
        await swarm.settle()
        assert swarm.agree()


async def test_an_heir_hears_the_last_words_of_the_dead_from_another_one_than_who_is_busy(autojump_clock):
    async with Swarm(round=ROUND, numel=2_000) as swarm:
        await swarm_of(swarm, "abcd")
        owner, next_owner, (busy, survivor) = roles(swarm)
        occupied = Occupied(busy, next_owner)

        swarm.world.partition({owner.id}, {next_owner.id})
        before = next_owner.versions()[0]
        await swarm.until(lambda: min(p.versions()[0] for p in (busy, survivor)) > before, 8, "the next owner is behind")
        last = (survivor.versions()[0], survivor.digests()[0])
        await swarm.kill(owner.name)
        await swarm.until(lambda: next_owner.versions()[0] > last[0], 30, "the next owner went on")

        assert occupied.at_s
        assert next_owner.engine.shards.replicas[0].chain.passed(*last)


@pytest.mark.parametrize("times", [2, FOR_EVER], ids=["all of them twice", "one of them for ever"])
async def test_a_newcomer_asks_another_or_later(autojump_clock, times):
    async with Swarm(round=ROUND, numel=8_000) as swarm:
        peers = await swarm_of(swarm, "abc")
        occupied = [Occupied(peer, times=times) for peer in (peers if times < FOR_EVER else peers[:1])]
        began = trio.current_time()

        newcomer = await swarm.add("new")

        assert all(1 <= len(o.at_s) <= times for o in occupied)
        if times < FOR_EVER:
            assert trio.current_time() - began > RETRY_S / 2
        else:
            assert peers[0].id not in {e.fields["peer"] for e in newcomer.events_named("shard.fetched")}
            assert trio.current_time() - began < 2 * catch_up.BUSY_S, "it has joined, whatever it may still lack"
        await swarm.settle()
        assert swarm.agree()
