"""Knowing each other in a crowd, in virtual time: what the service of members alone says and asks, without shards or training."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import trio

from legion_p2p.core.admission import Admission
from legion_p2p.core.announcement import Announcement, sign
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.member import Liveness
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.core.priority import Priority
from legion_p2p.core.ring_watch import QUIET_FROM
from legion_p2p.core.wire import Accusation, Done, Exchange, Exchanged, Message, PingFor, decode_request, encode
from legion_p2p.errors import JoinError
from legion_p2p.services.membership.prober import MAX_INVOLVED, N_INDIRECT_PROBES, N_WITNESSES
from legion_p2p.services.membership.service import MemberService
from legion_p2p.sim.gossip import SimGossip
from legion_p2p.sim.network import World
from tests.context_of import context_of

CONFIG = MembershipConfig()
CROWD = 30
FOUND_DEAD_S = CONFIG.suspect_after_s + CONFIG.grace_s + 1.0  # and a look at the clock now and then
FOUND_DEAD_IN_CROWD_S = FOUND_DEAD_S + 2 * CONFIG.look_s  # by those that watch it, who then tell the others


class Peer:
    """A peer that does nothing but know others."""

    def __init__(self, world: World, number: int) -> None:
        network = world.join(Identity(hashlib.sha256(b"%d" % number).digest()))
        self.id = network.peer_id
        self.asked: list[tuple[PeerId, Message]] = []
        self.exchanged: list[int] = []
        """How many announcements each exchange that it was asked for brought either way."""
        self._messenger = network.messenger
        ctx = context_of(network.identity, self, gossip=network.gossip, rng=random.Random(number))  # type: ignore[arg-type]
        self.members = MemberService(
            ctx, lambda: Announcement(self.id, "run", addresses=self.addresses(), region="home", ready=True)
        )
        self._messenger.serve(self._answer)

    async def request(self, peer: PeerId, body: bytes, priority: Priority = Priority.CONTROL) -> bytes:
        self.asked.append((peer, decode_request(body)))
        return await self._messenger.request(peer, body, priority)

    def addresses(self) -> tuple[str, ...]:
        return self._messenger.addresses()

    def add_addresses(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._messenger.add_addresses(peer, addresses)

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        message = decode_request(body)
        reply: Exchanged | Done = Done()
        if isinstance(message, Exchange):
            reply = self.members.on_exchange(peer, message)
            self.exchanged += [len(message.announcements), len(reply.announcements)]
        elif isinstance(message, PingFor):
            reply = await self.members.ping_helper.on_ping_for(peer, message)
        elif isinstance(message, Accusation):
            reply = self.members.on_accusation(peer, message)
        self.members.heard(peer)
        return encode(reply)


@asynccontextmanager
async def crowd(n: int) -> AsyncIterator[tuple[World, list[Peer]]]:
    """`n` peers, each of which has met the first of them."""
    async with World() as world, trio.open_nursery() as nursery:
        peers = [Peer(world, i) for i in range(n)]
        for peer in peers:
            await nursery.start(peer.members.run_forever)
            if peer is not peers[0]:
                peer.add_addresses(peers[0].id, peers[0].addresses())
                await peer.members.exchange_with(peers[0].id)
        yield world, peers
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    ends_at = trio.current_time() + timeout_s
    while not condition():
        assert trio.current_time() < ends_at
        await trio.sleep(0.1)


async def declared_dead(by: Iterable[Peer], watched_s: float) -> set[PeerId]:
    """Whom any of them takes for dead at any moment from now on."""
    declared: set[PeerId] = set()
    ends_at = trio.current_time() + watched_s
    while trio.current_time() < ends_at:
        await trio.sleep(0.1)
        declared.update(m.peer_id for peer in by for m in peer.members.table.members() if m.liveness is Liveness.DEAD)
    return declared


def all_know(peers: Iterable[Peer], n: int) -> bool:
    return {len(peer.members.roster.everyone()) for peer in peers} == {n}


def forget_requests(peers: Iterable[Peer]) -> None:
    for peer in peers:
        peer.asked.clear()


def n_asked_through_others(peer: Peer) -> int:
    return sum(isinstance(message, PingFor) for _, message in peer.asked)


def n_told(peer: Peer) -> int:
    """How often it told somebody else that one is dead."""
    return sum(isinstance(message, Accusation) and to != message.peer for to, message in peer.asked)


@pytest.mark.parametrize("how", [World.kill, World.freeze], ids=["killed", "silent"])
@pytest.mark.parametrize("n_dead", [CROWD // 5, CROWD // 2], ids=["a fifth", "half"])
async def test_many_who_die_at_once_are_found_dead_and_nobody_else_and_few_are_bothered_with_it(autojump_clock, how, n_dead):
    async with crowd(CROWD) as (world, peers):
        await until(lambda: all_know(peers, CROWD), 20)
        dead, living = peers[:n_dead], peers[n_dead:]
        one, other = living[:2]  # do not reach each other, though both live
        forget_requests(peers)

        world.partition({one.id}, {other.id})
        for peer in dead:
            how(world, peer.id)
        watched_s = FOUND_DEAD_IN_CROWD_S + 2 * CONFIG.announce_s
        declared = await declared_dead(living, watched_s)

        assert declared == {peer.id for peer in dead}
        assert all_know(living, len(living))
        for peer in living:
            # One that was connected to a few of them asks about those as about few, until the others have named the rest.
            n_probes = MAX_INVOLVED * CONFIG.grace_s / CONFIG.probe_every_s
            n_looks = watched_s / CONFIG.suspect_after_s if peer in (one, other) else 0  # at the other, in vain each time
            assert n_asked_through_others(peer) <= (n_probes + n_looks) * N_INDIRECT_PROBES
            assert n_told(peer) <= MAX_INVOLVED * N_WITNESSES


async def test_who_is_cut_off_suspects_everybody_and_asks_nobody_else_and_all_come_back(autojump_clock):
    async with crowd(CROWD) as (world, peers):
        await until(lambda: all_know(peers, CROWD), 20)
        alone, *others = peers
        forget_requests(peers)

        world.partition({alone.id}, {peer.id for peer in others})
        await until(lambda: all_know([alone], 1) and all_know(others, CROWD - 1), FOUND_DEAD_IN_CROWD_S + CONFIG.announce_s)

        assert n_asked_through_others(alone) <= MAX_INVOLVED * N_INDIRECT_PROBES
        assert n_told(alone) <= MAX_INVOLVED * N_WITNESSES
        world.heal()
        await until(lambda: all_know(peers, CROWD), 10)


async def test_others_are_asked_after_few_suspects_again_and_again(autojump_clock):
    async with crowd(QUIET_FROM) as (world, peers):
        await until(lambda: all_know(peers, len(peers)), 20)
        silent, living = peers[: MAX_INVOLVED - 1], peers[MAX_INVOLVED - 1 :]
        forget_requests(peers)

        for peer in silent:
            world.freeze(peer.id)
        await until(lambda: all_know(living, len(living)), FOUND_DEAD_S + CONFIG.announce_s)

        for peer in living:
            assert n_asked_through_others(peer) >= 2 * len(silent) * N_INDIRECT_PROBES  # the first probe is not the only one
            assert n_told(peer) == len(silent) * N_WITNESSES


async def test_in_a_crowd_an_exchange_carries_what_is_news_and_a_newcomer_hears_of_all_in_its_first(autojump_clock):
    async with crowd(2 * CROWD) as (world, peers):
        await until(lambda: all_know(peers, 2 * CROWD), 20)
        period_s = peers[0].members.period_s()
        for peer in peers:
            peer.exchanged.clear()
        await trio.sleep(2 * period_s)
        exchanged = [n for peer in peers for n in peer.exchanged]
        newcomer = Peer(world, 2 * CROWD)
        newcomer.add_addresses(peers[7].id, peers[7].addresses())

        await newcomer.members.exchange_with(peers[7].id)

        assert len(exchanged) > 2 * 2 * CROWD
        assert max(exchanged) <= 2  # the asker's own, or gossip that is on its way
        assert all_know([newcomer], 2 * CROWD + 1)


async def test_by_exchanges_alone_all_of_a_crowd_hear_of_all_and_take_nobody_for_dead_but_the_dead(autojump_clock, monkeypatch):
    """As if gossip brought nothing."""

    async def publish(self: SimGossip, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(SimGossip, "publish", publish)
    async with crowd(32) as (world, peers):
        await until(lambda: all_know(peers, len(peers)), 60)
        dead, *living = peers

        world.kill(dead.id)
        declared = await declared_dead(living, 20)

        assert declared == {dead.id}
        await until(lambda: all_know(living, len(living)), 60)  # until all have its last word, older ones may revive it


async def _outbid(peer: Peer, identity: Identity, seq: int, times: int) -> None:
    """Be another process with this peer's key: answer each of its announcements with a higher incarnation."""
    for n in range(times):
        other = Announcement(
            peer.id, "run", incarnation=peer.members.table.incarnation + 1, seq=seq + n, addresses=("/ip4/10.9.9.9/tcp/1",)
        )
        peer.members.take(sign(other, identity), direct=True)
        await trio.sleep(CONFIG.announce_s)


@pytest.mark.parametrize("is_newer", [True, False])
async def test_a_peer_with_a_copied_key_is_found_out_and_the_newer_one_ends(is_newer: bool, autojump_clock: object) -> None:
    identity = Identity(hashlib.sha256(b"0").digest())
    ended: list[JoinError] = []

    async with World() as world, trio.open_nursery() as nursery:
        peer = Peer(world, 0)

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                await peer.members.run_forever(task_status=task_status)
            except* JoinError as group:
                ended.extend(bad for bad in group.exceptions if isinstance(bad, JoinError))

        await nursery.start(run)
        await trio.sleep(20 * CONFIG.announce_s)
        await _outbid(peer, identity, seq=500 if is_newer else 1, times=4)

        told = [event.fields["text"] for event in peer.members._events.errors if event.name == "member.same_key"]
        assert told and "/ip4/10.9.9.9/tcp/1 runs with this peer's key" in told[0]
        assert ("this one is the newer and ends" in told[0]) == is_newer and bool(ended) == is_newer
        nursery.cancel_scope.cancel()


async def test_an_earlier_life_with_a_clock_ahead_ends_nobody(autojump_clock: object) -> None:
    async with crowd(2) as (_, peers):
        identity = Identity(hashlib.sha256(b"0").digest())

        await _outbid(peers[0], identity, seq=500, times=2)
        await trio.sleep(30)

        assert not peers[0].members._events.errors
        assert peers[1].members.table.get(peers[0].id) is not None


async def test_an_announcement_that_is_known_already_is_neither_checked_nor_told_of_again(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crowd(2) as (_, peers):
        await until(lambda: all_know(peers, 2), 10)
        members, other = peers[0].members, peers[1].id
        known = members.signed_of(other)
        assert known is not None
        told: list[Announcement] = []
        members.announcements.add(told.append)
        monkeypatch.setattr(Admission, "refusal", lambda *_: pytest.fail("it was looked at again"))
        before = members.table.revision

        members.take(known, direct=False)

        assert told == [] and members.table.revision == before
        monkeypatch.undo()
