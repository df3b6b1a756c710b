"""Peers that die, flap, sleep and are cut off, up to half of fifty in the same second: in virtual time, over the real engine.

Whatever happens: no version that two living peers held is lost, none of those who stay goes back, and everything settles.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio

from legion_p2p.core.run import RoundSpec
from legion_p2p.sim.swarm import SimPeer, Swarm

LOSSY = RoundSpec(local_steps=4, push_codec="int8", update_codec="int8", shard_elements=16)
TWO_SHARDS = RoundSpec(local_steps=4, push_codec="int8", update_codec="int8", shard_elements=32)
STEP_S = 0.5  # rounds of two seconds: long enough that most of what happens, happens in the middle of one


class Witness:
    """Looks at some peers again and again, and remembers every state of a shard that two of them held."""

    def __init__(self, peers: Iterable[SimPeer]) -> None:
        self.peers = list(peers)
        self._held: dict[tuple[int, int, bytes], set[str]] = {}
        self._before = {peer.name: peer.versions() for peer in self.peers}

    def look(self) -> None:
        for peer in self.peers:
            versions = peer.versions()
            assert all(v >= w for v, w in zip(versions, self._before[peer.name], strict=True)), f"{peer.name} went back"
            self._before[peer.name] = versions
            for shard, state in enumerate(zip(versions, peer.digests(), strict=True)):
                self._held.setdefault((shard, *state), set()).add(peer.name)

    def nothing_is_lost(self) -> None:
        """What two held, all have come through, as far back as they remember."""
        n_seen = 0
        for (shard, version, digest), names in self._held.items():
            for peer in self.peers if len(names) > 1 else ():
                chain = peer.engine.shards.replicas[shard].chain
                if version >= min(chain._digests):
                    assert chain.passed(version, digest), f"{peer.name} lost version {version} of shard {shard}"
                    n_seen += 1
        assert n_seen >= len(self.peers)


@asynccontextmanager
async def witnessed(swarm: Swarm, who: Iterable[SimPeer], every_s: float = 0.2) -> AsyncIterator[None]:
    """At the end the swarm settles, all hold the same, and nothing that two of `who` held at any time is lost."""
    witness = Witness(who)
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                witness.look()
                await trio.sleep(every_s)

        nursery.start_soon(watch)
        yield
        await swarm.settle(90)
        nursery.cancel_scope.cancel()
    witness.look()
    witness.nothing_is_lost()
    assert swarm.agree()


async def all_grow(swarm: Swarm, peers: Iterable[SimPeer], timeout_s: float) -> float:
    """Until every shard has two more versions at each of these peers; the seconds that took."""
    goals = [(peer, [v + 2 for v in peer.versions()]) for peer in peers]
    return await swarm.until(
        lambda: all(v >= w for peer, goal in goals for v, w in zip(peer.versions(), goal, strict=True)), timeout_s, "all grow"
    )


def owner_of(swarm: Swarm, shard: int) -> SimPeer:
    return next(p for p in swarm.living() if p.engine.shards.ownership(shard).owner == p.id)


def is_mid_round(peer: SimPeer, shard: int) -> bool:
    """It owns the shard, and has some of the pushes."""
    round = peer.engine.shards.replicas[shard].round
    return round is not None and 1 < len(round.waiting) < len(round.waited_for())


async def test_an_owner_dies_in_the_middle_of_a_round(autojump_clock):
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name, step_s=STEP_S * (1 + i / 20)) for i, name in enumerate("abcdef")]
        await trio.sleep(15)
        owner = owner_of(swarm, 0)
        await swarm.until(lambda: is_mid_round(owner, 0), 10, "in the middle of a round")
        acknowledged = [
            (p, pending.seq)
            for p in peers
            if p is not owner and (pending := p.engine.shards.replicas[0].pending) is not None and pending.holder == owner.id
        ]
        assert acknowledged
        survivors = [p for p in peers if p is not owner]

        async with witnessed(swarm, survivors):
            await swarm.kill(owner.name)
            assert await all_grow(swarm, survivors, 30) < 20
            for peer, seq in acknowledged:  # what it had taken and told nobody of was pushed again
                assert all(p.engine.shards.replicas[0].chain.includes(peer.id, seq) for p in survivors)


async def test_owner_and_standby_die_together(autojump_clock):
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name, step_s=STEP_S * (1 + i / 20)) for i, name in enumerate("abcdef")]
        await trio.sleep(15)
        owner = owner_of(swarm, 0)
        standby = next(p for p in peers if p.id == owner.engine.shards.ownership(0).standby)
        survivors = [p for p in peers if p not in (owner, standby)]
        await swarm.until(lambda: is_mid_round(owner, 0), 10, "in the middle of a round")

        async with witnessed(swarm, survivors):
            await swarm.kill(owner.name)
            await swarm.kill(standby.name)
            assert await all_grow(swarm, survivors, 30) < 20


@pytest.mark.parametrize("n_dead", [10, 25])
async def test_of_fifty_peers_many_die_in_the_same_second(n_dead, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=STEP_S) as swarm:
        await swarm.add("p0")
        for i in range(1, 50):
            swarm.start(f"p{i}")
        await swarm.until(lambda: all(len(p.engine.members.everyone()) == 50 for p in swarm.living()), 30, "all know all")
        await trio.sleep(6)
        doomed = {f"p{i}" for i in range(1, n_dead)} | {owner_of(swarm, 0).name}
        survivors = [p for p in swarm.living() if p.name not in doomed]

        async with witnessed(swarm, survivors):
            for name in doomed:
                await swarm.kill(name)
            await swarm.until(
                lambda: all(len(p.engine.members.everyone()) == len(survivors) for p in survivors), 12, "the dead are dead"
            )
            await all_grow(swarm, survivors[:1], 15)


async def test_peers_flap_every_ten_seconds_for_ten_minutes(autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=STEP_S) as swarm:
        stay = [await swarm.add(f"stay{i}") for i in range(3)]
        await trio.sleep(10)
        before = stay[0].versions()

        async with witnessed(swarm, stay):
            for i in range(30):
                flapping = await swarm.add(f"flap{i % 2}")
                await trio.sleep(10)
                await (swarm.leave if i % 3 == 0 else swarm.kill)(flapping.name)
                await trio.sleep(10)
            # 300 rounds fit in; about 8 s after each of the 20 deaths a shard of the dead one may stand still.
            assert all(now - then > 150 for now, then in zip(stay[0].versions(), before, strict=True))


async def test_a_network_splits_for_a_minute_and_heals(autojump_clock):
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name) for name in "abcdefg"]
        await trio.sleep(15)
        larger, smaller = peers[:4], peers[4:]

        async with witnessed(swarm, larger):
            swarm.world.partition({p.id for p in larger}, {p.id for p in smaller})
            await trio.sleep(60)
            assert swarm.agree() is False
            swarm.world.heal()
            await swarm.until(swarm.owners_agree, 90, "one view of who owns what")
            await all_grow(swarm, peers, 30)


async def test_a_laptop_is_suspended_for_an_hour(autojump_clock):
    """Longer than the others remember the dead."""
    async with Swarm(round=TWO_SHARDS, step_s=5.0) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(60)
        laptop = owner_of(swarm, 0)
        others = [p for p in peers if p is not laptop]

        async with witnessed(swarm, others, every_s=2.0):
            swarm.world.freeze(laptop.id)
            laptop.training = False
            await trio.sleep(3600)
            assert all(p.engine.members.table.get(laptop.id) is None for p in others)
            swarm.world.thaw(laptop.id)
            laptop.training = True
            await swarm.until(lambda: len(laptop.engine.members.everyone()) == 4, 60, "back")
            await swarm.until(swarm.owners_agree, 60, "one view of who owns what")
            await all_grow(swarm, peers, 120)


async def test_who_slept_while_its_own_clock_stood_still_follows_before_it_owns(autojump_clock):
    """Of a suspended machine only the wall clock tells that time has passed."""
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(15)
        laptop = owner_of(swarm, 0)

        async with witnessed(swarm, peers):
            laptop.clock_off_s += 3600
            await swarm.until(lambda: bool(laptop.events_named("run.rejoined")), 10, "came back as a newcomer")
            await swarm.until(swarm.owners_agree, 10, "one view of who owns what")
            await all_grow(swarm, peers, 30)


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
async def test_a_clock_is_wrong_by_an_hour_until_its_peer_starts_again(off_s, autojump_clock):
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        wrong = await swarm.add("wrong", clock_off_s=off_s)
        await trio.sleep(15)
        assert swarm.owners_agree()

        async with witnessed(swarm, peers):
            await swarm.kill(wrong.name)
            await trio.sleep(12)
            await swarm.add("wrong")  # with its clock set right, so that its new life looks older, or much newer
            await swarm.until(lambda: all(len(p.engine.members.everyone()) == 4 for p in swarm.living()), 20, "all know all")
            await swarm.until(swarm.owners_agree, 20, "one view of who owns what")
            await all_grow(swarm, swarm.living(), 30)


async def test_who_returns_makes_nobody_follow_because_others_died_long_before(autojump_clock):
    """More have died lately than are left; but they did not die together, so they are not the larger side of a split."""
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        stay = [await swarm.add(name) for name in "abc"]
        late = await swarm.add("late")
        for name in "uvwxy":
            await swarm.add(name)
        for name in "uvwxy":
            await swarm.kill(name)
            await trio.sleep(20)

        async with witnessed(swarm, stay):
            swarm.world.freeze(late.id)
            await swarm.until(lambda: all(len(p.engine.members.everyone()) == 3 for p in stay), 20, "it is taken for dead")
            swarm.world.thaw(late.id)
            await swarm.until(lambda: all(len(p.engine.members.everyone()) == 4 for p in stay), 20, "it is back")
            await all_grow(swarm, stay, 30)
            assert not any(p.events_named("run.rejoining") for p in stay)


async def test_of_a_majority_that_died_one_starts_again_and_nobody_waits_for_it(autojump_clock):
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        stay = [await swarm.add(name) for name in "ab"]
        for name in "wxyz":
            await swarm.add(name)
        await trio.sleep(10)

        async with witnessed(swarm, stay):
            for name in "wxyz":
                await swarm.kill(name)
            await swarm.until(lambda: all(len(p.engine.members.everyone()) == 2 for p in stay), 20, "the dead are dead")
            await swarm.add("w")
            await all_grow(swarm, swarm.living(), 30)
            assert not any(p.events_named("run.rejoining") for p in stay)
