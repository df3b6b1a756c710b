"""The five invariants of a shard's life (docs/ARCHITECTURE.md), in virtual time, over the real engine."""

import pytest
import torch
import trio

from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.shard.life_events import Owners
from legion_p2p.sim.swarm import Swarm

EXACT = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=16)
LOSSY = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=16)
RATE = 0.01
CONVERGED_S = 75.0  # 750 steps at that rate: what is left of the way to a target is a thousandth


@pytest.mark.parametrize("round", [EXACT, LOSSY], ids=["fp32", "int8"])
async def test_whoever_holds_a_version_holds_the_same_bytes(round, autojump_clock):
    seen: dict[tuple[int, int], bytes] = {}
    async with Swarm(round=round) as swarm:
        for name in "abcd":
            await swarm.add(name)
        for _ in range(100):
            await trio.sleep(0.5)
            for peer in swarm.living():
                for shard, (version, digest) in enumerate(zip(peer.versions(), peer.digests(), strict=True)):
                    assert seen.setdefault((shard, version), digest) == digest
        assert min(peer.versions()[0] for peer in swarm.living()) > 25

        await swarm.settle()

        assert swarm.agree()


async def test_a_swarm_finds_the_mean_of_its_targets(autojump_clock):
    async with Swarm(round=EXACT) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        for peer in peers:
            peer.rate = RATE

        await trio.sleep(CONVERGED_S)
        await swarm.settle()

        mean = torch.stack([peer.target for peer in peers]).mean(0)
        common = peers[0].engine.common_parameters()
        assert torch.allclose(common, mean, atol=0.03)


async def test_what_compression_leaves_out_arrives_later(autojump_clock):
    """With int8 both ways the swarm still ends at the mean: residuals at members and owners lose nothing."""
    async with Swarm(round=LOSSY) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        for peer in peers:
            peer.rate = RATE

        await trio.sleep(CONVERGED_S)
        await swarm.settle()

        mean = torch.stack([peer.target for peer in peers]).mean(0)
        assert torch.allclose(peers[0].engine.common_parameters(), mean, atol=0.03)


async def test_a_late_push_joins_a_later_version(autojump_clock):
    """One peer's pushes take longer than many rounds; its target counts all the same, and nobody waits for it."""
    async with Swarm(round=EXACT) as swarm:
        a, b, slow = [await swarm.add(name) for name in "abc"]
        await swarm.until(swarm.owners_agree, 10, "one view of who owns what")
        others = [a.id, b.id]
        swarm.world.delay_s = lambda x, y: 3.0 if slow.id in (x, y) and (x in others or y in others) else 0.005
        quick = [s for s in range(4) if a.engine.shards.ownership(s).owner != slow.id]
        assert quick, "somebody other than the slow one owns something"
        before = a.versions()

        await trio.sleep(60)

        for shard in quick:
            assert a.versions()[shard] - before[shard] > 30  # rounds of about a second, not of six
            assert all(p.engine.shards.replicas[shard].chain.includes(slow.id, 3) for p in (a, b))


async def test_a_push_to_somebody_who_no_longer_owns_reaches_who_does(autojump_clock):
    async with Swarm(round=EXACT) as swarm:
        a = await swarm.add("a")
        await swarm.add("b")
        for i in range(8):  # ownership moves with every join, in the middle of rounds
            await swarm.add(f"c{i}")
            await trio.sleep(0.3)

        await swarm.until(swarm.owners_agree, 20, "one view of who owns what")
        before = a.versions()
        await trio.sleep(15)

        assert all(now > then for now, then in zip(a.versions(), before, strict=True))
        await swarm.settle()
        assert swarm.agree()


async def test_a_push_that_its_owner_forgot_is_sent_again(autojump_clock):
    """For a moment the owner thinks that another one owns the shard, and drops what it holds. Nobody else pushes any more."""
    async with Swarm(round=EXACT) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await swarm.until(swarm.owners_agree, 10, "one view of who owns what")
        await trio.sleep(5)
        a, b = (a, b) if b.engine.shards.owned() else (b, a)
        shard = b.engine.shards.owned()[0]
        held, book = b.engine.shards.replicas[shard], a.engine.shards.replicas[shard]

        b.hung = True  # so that the round waits for its push
        await swarm.until(lambda: book.life.push.holder == b.id, 10, "the owner holds the push")
        forgotten = book.life.push.packed.seq
        states = b.engine.shards.states
        held.life.handle(Owners(Ownership(a.id, b.id)), trio.current_time())
        states.wake(held)
        await swarm.until(lambda: held.round is None, 1, "forgotten")
        held.life.handle(Owners(states.ownership(shard)), trio.current_time())
        states.wake(held)
        a.max_steps, b.max_steps, b.hung = a.local_trainer.steps, b.local_trainer.steps, False

        await swarm.until(lambda: held.chain.includes(a.id, forgotten), 30, "included after all")
        await swarm.settle()
        assert swarm.agree()


async def test_a_split_brain_heals_by_averaging(autojump_clock):
    async with Swarm(round=EXACT) as swarm:
        peers = [await swarm.add(name) for name in "abcdef"]
        for peer in peers:
            peer.rate = 2 * RATE
        await trio.sleep(20)
        left, right = peers[:3], peers[3:]

        swarm.world.partition({p.id for p in left}, {p.id for p in right})
        await trio.sleep(40)
        assert len({tuple(p.digests()) for p in peers}) > 1
        halves = [torch.stack([p.target for p in half]).mean(0) for half in (left, right)]
        swarm.world.heal()
        await swarm.until(swarm.owners_agree, 90, "one view of who owns what")
        await trio.sleep(CONVERGED_S / 2)
        await swarm.settle(90)

        assert swarm.agree()
        common = peers[0].engine.common_parameters()
        mean = torch.stack(halves).mean(0)
        assert torch.allclose(common, mean, atol=0.05)


async def test_a_dead_owners_shards_go_on_from_the_last_version(autojump_clock):
    async with Swarm(round=EXACT) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(10)
        victim = next(p for p in peers if p.engine.shards.owned())
        survivors = [p for p in peers if p is not victim]
        owned = victim.engine.shards.owned()
        killed_at = trio.current_time()
        before = survivors[0].versions()

        await swarm.kill(victim.name)
        dead_after = await swarm.until(lambda: all(p.events_named("member.dead") for p in survivors), 10, "declared dead")
        at_death = survivors[0].versions()
        grown_after = await swarm.until(
            lambda: all(p.versions()[s] > at_death[s] for p in survivors for s in owned), 5, "versions grow again"
        )

        assert dead_after <= 10 and grown_after <= 5
        assert all(now >= then for now, then in zip(at_death, before, strict=True))
        assert trio.current_time() - killed_at < 15
        await swarm.settle()
        assert swarm.agree()


async def test_the_standby_takes_over_even_when_the_owner_told_only_one_of_its_last_version(autojump_clock):
    """The owner's last update reaches one member only. The next owner asks around before it goes on, so no version is lost."""
    async with Swarm(round=EXACT) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(10)
        shard = 0
        owner = next(p for p in peers if p.engine.shards.ownership(shard).owner == p.id)
        next_id = owner.engine.shards.ownership(shard).standby
        witness = next(p for p in peers if p is not owner and p.id != next_id)
        others = {p.id for p in peers if p not in (owner, witness)}

        swarm.world.partition({owner.id}, others)
        before = witness.versions()[shard]
        await swarm.until(lambda: witness.versions()[shard] > before, 8, "the witness has a version that nobody else has")
        lonely = (witness.versions()[shard], witness.digests()[shard])
        await swarm.kill(owner.name)
        next_owner = next(p for p in swarm.living() if p.id == next_id)
        await swarm.until(lambda: next_owner.versions()[shard] > lonely[0], 30, "the next owner went on")

        assert next_owner.engine.shards.replicas[shard].chain.passed(*lonely)
