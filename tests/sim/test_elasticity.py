"""Peers that die, flap, sleep, are cut off or have a wrong clock: in virtual time, over the real engine.

Up to twenty of them; those marked `long` have up to two hundred.

Whatever happens: no version that two peers held is lost, though both die; none of those who stay goes back; at the end all hold
the same.
"""

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.shard.push import PushState
from legion_p2p.errors import DiskFullError
from legion_p2p.services.run import advertise
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.journal import Journal
from legion_p2p.train.checkpoint import Checkpoint

LOSSY = RoundSpec(local_steps=4, push_codec="int8", update_codec="int8", shard_elements=16)
TWO_SHARDS = RoundSpec(local_steps=4, push_codec="int8", update_codec="int8", shard_elements=32)
ONE_SHARD = RoundSpec(local_steps=4, push_codec="int8", update_codec="int8", shard_elements=64)
PATIENT = PeerConfig(membership=MembershipConfig(announce_s=4.0, suspect_after_s=9.0, grace_s=4.0, probe_every_s=10.0))
SIZES = (12, *(pytest.param(n, marks=pytest.mark.long) for n in (20, 50)))
STEP_S = 0.5  # rounds of two seconds: long enough that most of what happens, happens in the middle of one


async def crowd(swarm: Swarm, n: int, step_s: float = STEP_S) -> list[SimPeer]:
    """`n` peers that know each other and have made a round. No two are equally fast."""
    await swarm.add("p0")
    for i in range(1, n):
        swarm.start(f"p{i}", step_s=step_s * (1 + i / (5 * n)))
    await swarm.until(lambda: n_known(swarm.living()) == {n}, 30, "all know all")
    await swarm.until(lambda: min(min(p.versions()) for p in swarm.living()) >= 1, 20 + 12 * step_s, "a round")
    return list(swarm.living())


def n_known(peers: Iterable[SimPeer]) -> set[int]:
    """How many peers each of them knows, itself included."""
    return {len(p.engine.members.roster.everyone()) for p in peers}


class Witness:
    """Looks at some peers again and again, and remembers every state of a shard that two of them held.

    A peer that is killed between two looks is seen as it was when it died: what it held is kept by its engine.
    """

    def __init__(self, peers: Iterable[SimPeer], doomed: Iterable[SimPeer] = ()) -> None:
        self.peers = list(peers)
        self._all = [*self.peers, *doomed]
        self._held: dict[tuple[int, int, bytes], set[str]] = {}
        self._before = {peer.name: peer.versions() for peer in self._all}

    def look(self) -> None:
        for peer in self._all:
            versions = peer.versions()
            assert all(v >= w for v, w in zip(versions, self._before[peer.name], strict=True)), f"{peer.name} went back"
            self._before[peer.name] = versions
            for shard, state in enumerate(zip(versions, peer.digests(), strict=True)):
                self._held.setdefault((shard, *state), set()).add(peer.name)

    def nothing_is_lost(self) -> None:
        """What two held, all who stay have come through, as far back as they remember."""
        n_seen = 0
        for (shard, version, digest), names in self._held.items():
            for peer in self.peers if len(names) > 1 else ():
                chain = peer.engine.shards.replicas[shard].chain
                if version >= min(chain._digests):
                    assert chain.passed(version, digest), f"{peer.name} lost version {version} of shard {shard}"
                    n_seen += 1
        assert n_seen >= len(self.peers)


@asynccontextmanager
async def witnessed(
    swarm: Swarm, who: Iterable[SimPeer], doomed: Sequence[SimPeer] = (), every_s: float = 0.2, settle_s: float = 90.0
) -> AsyncIterator[list[SimPeer]]:
    """At the end the swarm settles, all hold the same, and nothing that two of `who` held at any time is lost.

    Those of `doomed` are among them as long as they live. Gives the others.
    """
    survivors = [peer for peer in who if peer not in doomed]
    witness = Witness(survivors, doomed)
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                witness.look()
                await trio.sleep(every_s)

        nursery.start_soon(watch)
        yield survivors
        await swarm.settle(settle_s)
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


@pytest.mark.parametrize("n", SIZES)
async def test_an_owner_dies_in_the_middle_of_a_round_and_then_the_next_one_together_with_its_standby(n, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=STEP_S) as swarm:
        peers = await crowd(swarm, n)
        owner = owner_of(swarm, 0)

        async with witnessed(swarm, peers, [owner]) as survivors:
            await swarm.until(lambda: is_mid_round(owner, 0), 10, "in the middle of a round")
            acknowledged = [
                (p, push.packed.seq)
                for p in survivors
                if (push := p.engine.shards.replicas[0].life.push).state is PushState.HELD and push.holder == owner.id
            ]
            assert acknowledged
            await swarm.kill(owner.name)
            assert await all_grow(swarm, survivors, 30) < 20
            for peer, seq in acknowledged:  # what it had taken and told nobody of was pushed again
                await swarm.until(
                    lambda peer=peer, seq=seq: all(p.engine.shards.replicas[0].chain.includes(peer.id, seq) for p in survivors),
                    10,
                    "included after all",
                )

        for peer in survivors:
            peer.max_steps = None
        owner = owner_of(swarm, 0)
        standby = next(p for p in survivors if p.id == owner.engine.shards.ownership(0).standby)
        async with witnessed(swarm, survivors, [owner, standby]) as survivors:
            await swarm.until(lambda: is_mid_round(owner, 0), 10, "in the middle of a round")
            await swarm.kill(owner.name)
            await swarm.kill(standby.name)
            assert await all_grow(swarm, survivors, 30) < 20


@pytest.mark.parametrize(
    ("n", "n_dead"),
    [
        (20, 4),
        (20, 10),
        *(pytest.param(*numbers, marks=pytest.mark.long) for numbers in ((50, 10), (50, 25), (100, 50), (200, 40), (200, 100))),
    ],
)
async def test_a_fifth_or_half_of_all_die_in_the_same_second(n, n_dead, autojump_clock, monkeypatch):
    monkeypatch.setattr(advertise, "LOOK_EVERY_S", 600.0)
    async with Swarm(round=ONE_SHARD, step_s=2 * STEP_S, config=PATIENT) as swarm:
        peers = await crowd(swarm, n, step_s=2 * STEP_S)
        owner = owner_of(swarm, 0)
        doomed = [owner, *[p for p in peers if p is not owner][: n_dead - 1]]

        async with witnessed(swarm, peers, doomed, every_s=1.0) as survivors:
            await swarm.until(lambda: is_mid_round(owner, 0), 20, "in the middle of a round")
            for peer in doomed:
                await swarm.kill(peer.name)
            await swarm.until(lambda: n_known(survivors) == {n - n_dead}, 20, "the dead are dead")
            assert await all_grow(swarm, survivors[:1], 40) < 20


async def flap(swarm: Swarm, n: int, n_names: int, minutes: int) -> None:
    """Every twenty seconds `n` peers start, which ten seconds later are killed, or leave in order."""
    for i in range(3 * minutes):
        flapping = [swarm.start(f"flap{(i * n + k) % n_names}") for k in range(n)]
        await trio.sleep(10)
        for k, peer in enumerate(flapping):
            await (swarm.leave if (i + k) % 3 == 0 else swarm.kill)(peer.name)
        await trio.sleep(10)


@pytest.mark.parametrize("minutes", [3, pytest.param(10, marks=pytest.mark.long)])
async def test_a_peer_flaps_every_ten_seconds_for_minutes(minutes, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=STEP_S) as swarm:
        stay = [await swarm.add(f"stay{i}") for i in range(3)]
        await trio.sleep(10)
        before = stay[0].versions()

        async with witnessed(swarm, stay):
            await flap(swarm, 1, 2, minutes)
            # 30 rounds a minute fit in; about 8 s after each of the 2 deaths a shard of the dead one may stand still.
            assert all(now - then > 15 * minutes for now, then in zip(stay[0].versions(), before, strict=True))


@pytest.mark.long
async def test_five_of_fifty_flap_every_ten_seconds_for_ten_minutes(autojump_clock, monkeypatch):
    monkeypatch.setattr(advertise, "LOOK_EVERY_S", 600.0)
    async with Swarm(round=ONE_SHARD, step_s=5 * STEP_S, config=PATIENT) as swarm:
        peers = await crowd(swarm, 45, step_s=5 * STEP_S)
        before = peers[0].versions()

        async with witnessed(swarm, peers, every_s=2.0):
            await flap(swarm, 5, 5, 10)
            # 55 rounds fit in; after a death of the owner the shard stands still for some 20 s.
            assert all(now - then > 30 for now, then in zip(peers[0].versions(), before, strict=True))


@pytest.mark.parametrize("n", SIZES)
async def test_a_network_splits_for_a_minute_and_heals(n, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=2 * STEP_S) as swarm:
        peers = await crowd(swarm, n, step_s=2 * STEP_S)
        larger, smaller = peers[: 3 * n // 5], peers[3 * n // 5 :]

        async with witnessed(swarm, larger, every_s=1.0):
            swarm.world.partition({p.id for p in larger}, {p.id for p in smaller})
            await trio.sleep(60)
            assert swarm.agree() is False
            swarm.world.heal()
            await swarm.until(swarm.owners_agree, 90, "one view of who owns what")
            await all_grow(swarm, peers, 30)


async def suspend(swarm: Swarm, laptop: SimPeer, for_s: float, back_within_s: float, grow_within_s: float) -> None:
    """Longer than the others remember the dead."""
    everyone = swarm.living()
    swarm.world.freeze(laptop.id)
    laptop.training = False
    await trio.sleep(for_s)
    assert all(p.engine.members.table.get(laptop.id) is None for p in everyone if p is not laptop)
    swarm.world.thaw(laptop.id)
    laptop.training = True
    await swarm.until(lambda: n_known(everyone) == {len(everyone)}, back_within_s, "back")
    await swarm.until(swarm.owners_agree, back_within_s, "one view of who owns what")
    await all_grow(swarm, everyone, grow_within_s)


@pytest.mark.parametrize("minutes", [12, pytest.param(60, marks=pytest.mark.long)])
async def test_a_laptop_is_suspended_until_the_others_have_forgotten_it(minutes, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=5.0, config=PATIENT) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(60)
        laptop = owner_of(swarm, 0)
        others = [p for p in peers if p is not laptop]

        async with witnessed(swarm, others, every_s=2.0):
            await suspend(swarm, laptop, 60 * minutes, back_within_s=60, grow_within_s=120)


@pytest.mark.long
async def test_one_of_fifty_is_suspended_for_an_hour(autojump_clock, monkeypatch):
    monkeypatch.setattr(advertise, "LOOK_EVERY_S", 600.0)
    slow = MembershipConfig(announce_s=30.0, suspect_after_s=70.0, grace_s=45.0, probe_every_s=15.0)
    async with Swarm(round=ONE_SHARD, step_s=30.0, config=PeerConfig(membership=slow)) as swarm:
        peers = await crowd(swarm, 50, step_s=30.0)
        laptop = owner_of(swarm, 0)

        async with witnessed(swarm, peers, [laptop], every_s=20.0, settle_s=900.0):
            await suspend(swarm, laptop, 3600, back_within_s=120, grow_within_s=600)


async def test_who_slept_while_its_own_clock_stood_still_follows_before_it_owns(autojump_clock):
    """Of a suspended machine only the clock that runs on tells that time has passed."""
    async with Swarm(round=LOSSY, step_s=STEP_S) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(15)
        laptop = owner_of(swarm, 0)

        async with witnessed(swarm, peers):
            laptop.clock_off_s += 3600
            await swarm.until(lambda: bool(laptop.events_named("run.rejoined")), 10, "came back as a newcomer")
            await swarm.until(swarm.owners_agree, 10, "one view of who owns what")
            await all_grow(swarm, peers, 30)


@pytest.mark.parametrize("n", SIZES)
async def test_clocks_are_wrong_by_an_hour_until_their_peers_start_again(n, autojump_clock):
    async with Swarm(round=TWO_SHARDS, step_s=2 * STEP_S) as swarm:
        peers = await crowd(swarm, n - 2, step_s=2 * STEP_S)
        wrong = [await swarm.add("ahead", clock_off_s=3600.0), await swarm.add("behind", clock_off_s=-3600.0)]
        await swarm.until(swarm.owners_agree, 20, "one view of who owns what")

        async with witnessed(swarm, peers, every_s=1.0):
            for peer in wrong:
                await swarm.kill(peer.name)
            await trio.sleep(12)
            for peer in wrong:  # with clocks set right, so that their new lives look older, or much newer
                await swarm.add(peer.name)
            await swarm.until(lambda: n_known(swarm.living()) == {n}, 20, "all know all")
            await swarm.until(swarm.owners_agree, 20, "one view of who owns what")
            await all_grow(swarm, swarm.living(), 30)


@pytest.mark.parametrize("n", SIZES)
async def test_the_disks_of_a_fifth_are_full(n, tmp_path: Path, autojump_clock, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    append = Journal.append

    def append_where_room_is(self, records):
        if self.path.parents[1].name in full:
            raise DiskFullError(f"no space left on the disk of {self.path}")
        return append(self, records)

    monkeypatch.setattr(Journal, "append", append_where_room_is)
    full: set[str] = set()
    config = PeerConfig(checkpoints=CheckpointConfig(every_s=8, base_every=8))
    async with Swarm(round=ONE_SHARD, step_s=2 * STEP_S, stores=tmp_path, config=config) as swarm:
        peers = await crowd(swarm, n, step_s=2 * STEP_S)
        owner = owner_of(swarm, 0)
        struck = [owner, *[p for p in peers if p is not owner][: n // 5 - 1]]

        async with witnessed(swarm, peers, every_s=1.0):
            full.update(peer.name for peer in struck)
            await trio.sleep(10)
            assert await all_grow(swarm, peers, 30) < 20
            assert all((len(p.events_named("checkpoint.failed")) == 1) == (p in struck) for p in peers)
        assert all("training goes on" in p.events_named("checkpoint.failed")[0].fields["text"] for p in struck)
    for peer in struck:  # what was stored before is whole
        with BlockStore(tmp_path / peer.name, read_only=True) as store:
            assert store.pins() and all(Checkpoint(store, cid) for cid in store.pins())


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
            await swarm.until(lambda: all(len(p.engine.members.roster.everyone()) == 3 for p in stay), 20, "it is taken for dead")
            swarm.world.thaw(late.id)
            await swarm.until(lambda: all(len(p.engine.members.roster.everyone()) == 4 for p in stay), 20, "it is back")
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
            await swarm.until(lambda: all(len(p.engine.members.roster.everyone()) == 2 for p in stay), 20, "the dead are dead")
            await swarm.add("w")
            await all_grow(swarm, swarm.living(), 30)
            assert not any(p.events_named("run.rejoining") for p in stay)
