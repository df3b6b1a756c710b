"""The conversations about shards between a few peers over the network in memory. Nobody trains: changes are handed in by hand."""

import gc
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.core.announcement import mark_of
from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.privacy import Spent, parse_privacy
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.shard.life_events import Owners
from legion_p2p.core.shard.push import PushState
from legion_p2p.core.wire import (
    OTHER,
    UNKNOWN,
    AncestryQuery,
    Busy,
    GetShard,
    GetUpdates,
    HandoverPart,
    Held,
    NotOwner,
    Push,
    Pushed,
    ShardState,
    State,
    Update,
    Updates,
    encode,
)
from legion_p2p.errors import CodecError, DecodeError, LegionError, NetworkError, RefusedError, StoreError, UnreachableError
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.dispatch import BESIDE_BYTES
from legion_p2p.services.run.joiner import creating, joining
from legion_p2p.services.run.leaving import leave
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.status import describe, status_of
from legion_p2p.services.shards.mailbox import NON_FINITE
from legion_p2p.services.shards.replica import LocalChange, Replica
from legion_p2p.sim.network import World
from legion_p2p.tensor import codec
from tests.parts_of import creation_of, log_of, parts_of

N = 64
ONE = RoundSpec(local_steps=10, push_codec="fp32", update_codec="int8", aggregation="mean", shard_elements=N, outer="nesterov")
"""One shard; its owner keeps a residual and a momentum."""
RAMP = torch.linspace(-1.0, 1.0, N)


class Peer:
    """One peer, its log, and what it tells the training side."""

    def __init__(self, run: ActiveRun, world: World) -> None:
        self.run = run
        self.world = world
        self.log = log_of(run.lobby.parts)

    @property
    def me(self) -> PeerId:
        return self.run.me

    @property
    def shards(self) -> Any:
        return self.run.shards

    @property
    def replica(self) -> Replica:
        return self.run.shards.replicas[0]

    @property
    def owns(self) -> bool:
        return self.replica.round is not None

    def names(self) -> list[str]:
        return [event.name for event in self.log]

    def offer(self, by: Tensor, *, version: int | None = None, tokens: int = 10) -> None:
        """Hand in a change of the shard."""
        base = self.replica.reference
        at = self.replica.chain.version if version is None else version
        self.shards.contribute(LocalChange(0, at, base, base - by, tokens, 10))

    def settled(self) -> list[str | None]:
        return [news.failure for news in self.run.mailbox.drain()[1]]

    async def ask(self, other: "Peer", message: Any) -> Any:
        return await self.shards.states.rpc.ask(other.me, message, within_s=30.0)

    async def refused(self, other: "Peer", message: Any) -> str:
        """The kind of the refusal."""
        try:
            await self.ask(other, message)
        except NetworkError as refused:
            return getattr(refused, "kind", type(refused).__name__)
        return ""


@asynccontextmanager
async def peers_of(
    n: int, rounds: RoundSpec = ONE, make: Callable[[PeerParts], PeerParts] = lambda parts: parts
) -> AsyncIterator[list[Peer]]:
    """A run of `n` peers that train, made of what `make` says; the owner of its shard is the first of them."""
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World())
        peers: list[Peer] = []
        for i in range(n):
            parts = make(parts_of(world, f"peer-{i}"))
            if not peers:
                run = await stack.enter_async_context(creating(parts, creation_of(rounds=rounds)))
            else:
                first = peers[0].run
                parts.network.messenger.add_addresses(first.me, first.messenger.addresses())
                await parts.network.messenger.request(first.me, encode(_ping(first.id)))
                run = await stack.enter_async_context(joining(parts, "run"))
            run.report(Progress(training=True))
            peers.append(Peer(run, world))
        await until(lambda: sum(peer.owns for peer in peers) == 1 and _agree(peers))
        yield sorted(peers, key=lambda peer: not peer.owns)


def _ping(run: str) -> Any:
    from legion_p2p.core.wire import Ping

    return Ping(run)


def _agree(peers: list[Peer]) -> bool:
    views = {peer.shards.ownership(0) for peer in peers}
    known = all(len(peer.run.members.roster.training(peer.shards.region)) == len(peers) for peer in peers)
    return len(views) == 1 and known


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)


async def a_round(peers: list[Peer]) -> None:
    """Everybody pushes, and everybody gets the update."""
    version = max(peer.replica.chain.version for peer in peers)
    for i, peer in enumerate(peers):
        peer.offer((i + 1) * RAMP)
    await until(lambda: all(peer.replica.chain.version > version and peer.replica.life.push.is_idle for peer in peers))


# pushing, closing, publishing


async def test_what_all_push_becomes_the_next_version_at_all(autojump_clock: object) -> None:
    plain = msgspec.structs.replace(ONE, outer="average", update_codec="fp32")
    async with peers_of(3, plain) as peers:
        before = peers[0].replica.reference

        await a_round(peers)

        expected = before - 2 * RAMP
        assert all(torch.allclose(peer.replica.reference, expected, atol=1e-5) for peer in peers)
        assert len({peer.replica.chain.digest for peer in peers}) == 1
        assert [peer.settled() for peer in peers] == [[None]] * 3
        assert all("round.closed" in peer.names() for peer in peers)


async def test_no_round_closes_without_a_member_that_has_just_begun_to_train(autojump_clock: object) -> None:
    async with peers_of(2, msgspec.structs.replace(ONE, quorum=1.0)) as [owner, member]:
        for peer in (owner, member):
            peer.run.report(Progress(training=False))
        await until(lambda: not any(peer.run.members.roster.training(peer.shards.region) for peer in (owner, member)))
        await trio.sleep(1)
        before = owner.replica.chain.version

        owner.run.report(Progress(training=True))
        member.offer(RAMP)
        await trio.sleep(20)
        assert owner.replica.chain.version == before
        owner.offer(2 * RAMP)
        await until(lambda: member.replica.chain.version == before + 1)

        included = {inclusion.peer for inclusion in member.replica.chain.included() if inclusion.seq >= 0}
        assert included == {owner.me, member.me}


async def test_alone_a_change_becomes_the_next_version_bit_for_bit(autojump_clock: object) -> None:
    async with peers_of(1) as (only,):
        before = only.replica.reference

        only.offer(RAMP)
        await until(lambda: only.replica.chain.version == 1)

        assert torch.equal(only.replica.reference, before - RAMP)
        await until(lambda: only.settled() == [None])


@pytest.mark.parametrize("n", [1, 2])
async def test_parameters_that_are_not_finite_are_taken_back(autojump_clock: object, n: int) -> None:
    async with peers_of(n) as peers:
        peers[-1].offer(torch.full((N,), math.nan))
        await until(lambda: peers[-1].replica.life.push.is_idle)

        assert peers[-1].settled() == [NON_FINITE]
        assert "push.non_finite" in peers[-1].names() and peers[-1].replica.chain.version == 0


class SpentInMemory:
    """What was written down, and whether the disk fails."""

    def __init__(self) -> None:
        self.written = Spent()
        self.fails = False

    def load(self, run: str) -> Spent:
        return self.written

    def save(self, run: str, spent: Spent) -> None:
        if self.fails:
            raise StoreError("the disk is full")
        self.written = spent


def private(parts: PeerParts, store: SpentInMemory, text: str = "noise=1,clip=1,delta=1e-6") -> PeerParts:
    config = msgspec.structs.replace(parts.config, privacy=parse_privacy(text))
    return replace(parts, config=config, spent=store)


@pytest.mark.parametrize("n", [1, 2])
async def test_what_a_private_peer_pushes_is_short_and_noisy_also_where_it_is_alone(autojump_clock: object, n: int) -> None:
    store = SpentInMemory()
    async with peers_of(n, make=lambda parts: private(parts, store)) as peers:
        owner = peers[0]
        before = owner.replica.reference
        for peer in peers:
            peer.run.report(Progress(training=True, loss=1.25))
            peer.offer(RAMP * 1000)
        await until(lambda: all(peer.replica.chain.version == 1 for peer in peers))

        moved = before - owner.replica.reference
        assert float(moved.norm()) < 4 * math.sqrt(N)  # clipped to 1, and the noise of 64 elements
        assert not torch.allclose(moved / moved.norm(), RAMP / RAMP.norm(), atol=1e-3)
        status = status_of(owner.run).privacy
        assert status is not None and 4.88 < status.epsilon < 5.3
        assert (status.rounds, status.clipped_share) == (1.0, 1.0) and store.written.total >= 1.0
        assert describe(owner.run).loss is None and status_of(owner.run).loss == 1.25


async def test_a_full_disk_is_reported_and_what_is_spent_is_still_counted(autojump_clock: object) -> None:
    store = SpentInMemory()
    store.fails = True
    async with peers_of(1, make=lambda parts: private(parts, store)) as (only,):
        only.offer(RAMP)
        await until(lambda: only.replica.chain.version == 1)

        status = status_of(only.run).privacy
        assert "privacy.not_written" in only.names() and status is not None and status.rounds == 1.0


async def test_a_push_to_a_peer_that_owns_nothing_is_sent_to_the_owner(autojump_clock: object) -> None:
    async with peers_of(3) as (owner, member, other):
        member.replica.life.handle(Owners(Ownership(other.me, None)), trio.current_time())

        member.offer(RAMP)
        await until(lambda: member.replica.life.push.state is PushState.HELD)

        assert member.replica.life.push.holder == owner.me
        assert member.me in owner.replica.arrived


async def test_a_hung_owner_is_given_up_when_another_peer_owns_the_shard(autojump_clock: object) -> None:
    async with peers_of(3) as (owner, member, other):
        owner.world.freeze(owner.me)
        member.offer(RAMP)
        await until(lambda: member.replica.life.push.state is PushState.SENT)

        member.replica.life.handle(Owners(Ownership(other.me, None)), trio.current_time())
        member.shards.states.wake(member.replica)
        await trio.sleep(0.5)

        assert member.replica.life.push.state is PushState.PACKED
        owner.world.thaw(owner.me)


async def test_an_owner_that_cannot_read_a_push_settles_it(autojump_clock: object) -> None:
    async with peers_of(2) as (_, member):
        member.shards.states.push_codec = "int4"

        member.offer(RAMP)
        await until(lambda: member.replica.life.push.is_idle)

        (failure,) = member.settled()
        assert failure is not None and "int4" in failure and "push.refused" in member.names()


async def test_pushes_that_are_too_large_together_make_no_version(autojump_clock: object) -> None:
    async with peers_of(2, msgspec.structs.replace(ONE, outer="average")) as peers:
        owner = peers[0]
        owner.replica.owner_residual = torch.full((N,), 2e38)
        for peer in peers:
            peer.offer(torch.full((N,), 3e38))
        await until(lambda: owner.replica.life.push.is_idle)

        assert owner.replica.chain.version == 0 and owner.settled() == ["the owner found it unusable"]
        assert owner.replica.owner_residual is None


def push_of(peer: Peer, **fields: Any) -> Push:
    payload = codec.get("fp32").encode(RAMP)
    return msgspec.structs.replace(Push(peer.run.id, 0, 0, 0, 1, 1, "fp32", payload), **fields)


async def test_what_an_owner_answers_to_pushes(autojump_clock: object) -> None:
    async with peers_of(3) as (owner, member, other):
        assert await member.ask(owner, push_of(member)) == Pushed(0, False)
        assert await member.ask(owner, push_of(member)) == Pushed(0, False)  # again: it counts once
        assert owner.replica.round is not None and len(owner.replica.round.waiting) == 1
        redirected = await member.ask(other, push_of(member))
        assert isinstance(redirected, NotOwner) and redirected.owner == owner.me

        kinds = [
            await member.refused(owner, push_of(member, codec="int4")),
            await member.refused(owner, push_of(member, seq=1 << 60)),
            await member.refused(owner, push_of(member, payload=b"x", seq=5)),
            await member.refused(owner, push_of(member, shard=7)),
        ]
        assert kinds == ["CodecError", "DecodeError", "CodecError", "DecodeError"]


async def test_a_push_that_waits_for_its_round_takes_the_memory_that_it_came_with(autojump_clock: object) -> None:
    """A sparse one decodes to some hundred times as much, and any number of members may push."""
    async with peers_of(3) as (owner, member, _):
        await member.ask(owner, push_of(member))

        held = owner.replica.arrived[member.me]
        reachable = gc.get_referents(held, held.value, vars(held.value))
        assert not any(isinstance(thing, Tensor) for thing in reachable)
        assert torch.equal(held.value(), codec.get("fp32").decode(push_of(member).payload, N))


async def test_what_an_update_contains_already_is_answered_so(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        await a_round(peers)

        assert await peers[1].ask(peers[0], push_of(peers[1], seq=0)) == Pushed(1, True)


async def test_a_stranger_can_push_nothing(autojump_clock: object) -> None:
    async with peers_of(1) as (owner,):
        with pytest.raises(LegionError, match="not a known member"):
            await owner.shards.owner.on_push(PeerId("stranger"), push_of(owner))


# following


async def test_a_request_that_is_longer_than_the_runs_shards_is_not_even_held(autojump_clock: object) -> None:
    async with peers_of(2) as (owner, member):
        with pytest.raises(RefusedError, match="the longest that can be meant for this peer"):
            await member.run.messenger.request(owner.me, bytes(4 * N + BESIDE_BYTES + 1), Priority.ROUND)


async def test_an_update_that_is_lost_is_fetched(autojump_clock: object) -> None:
    async with peers_of(3) as peers:
        owner, behind, other = peers
        deliver = owner.shards.forwarder.deliver

        async def lose(replica: Replica, send: Any, update: Any) -> None:
            if send.peer != behind.me:
                await deliver(replica, send, update)

        owner.shards.forwarder.deliver = lose
        for peer in peers:
            peer.offer(RAMP)
        await until(lambda: other.replica.chain.version == 1)
        assert behind.replica.chain.version == 0

        await until(lambda: behind.replica.chain.version == 1)

        assert torch.equal(behind.replica.reference, owner.replica.reference)
        await until(lambda: behind.settled() == [None])


async def test_updates_that_do_not_fit_are_refused(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        await a_round(peers)
        made = owner.replica.chain.last()
        assert made is not None
        follow = member.shards.follower.on_update

        assert await follow(owner.me, made.update) == Held(1, owner.replica.chain.digest)  # it has it
        with pytest.raises(DecodeError, match="not those that its owner signed"):
            await follow(member.me, msgspec.structs.replace(made.update, payload=b"x" + bytes(made.update.payload)[1:]))
        with pytest.raises(LegionError):
            await follow(owner.me, msgspec.structs.replace(made.update, signature=b"x" * 64))

        def forged(**fields: Any) -> Update:
            header = msgspec.structs.replace(made.header, version=2, base_digest=made.header.digest, **fields)
            raw = encode(header)
            return Update(raw, sign_header(raw, owner.run.ctx.identity), made.update.payload)

        with pytest.raises(DecodeError, match="does not lead to its digest"):
            await follow(owner.me, forged(digest=b"d" * 32))
        with pytest.raises(CodecError, match="allows"):
            await follow(owner.me, forged(codec="int4"))
        with pytest.raises(LegionError, match="this is"):
            await follow(owner.me, forged(run="another"))
        assert member.replica.chain.version == 1


async def test_an_update_from_a_peer_that_does_not_own_the_shard_is_refused(autojump_clock: object) -> None:
    async with peers_of(3) as peers:
        owner, member, other = peers
        await a_round(peers)
        made = owner.replica.chain.last()
        assert made is not None
        not_standby = next(p for p in (member, other) if p.me != owner.shards.ownership(0).standby)
        header = msgspec.structs.replace(made.header, owner=not_standby.me, version=2, base_digest=made.header.digest)
        raw = encode(header)
        update = Update(raw, sign_header(raw, not_standby.run.ctx.identity), made.update.payload)
        target = member if not_standby is other else other

        assert await not_standby.refused(target, update) == "NetworkError"


async def test_a_peer_on_another_chain_takes_over_the_owners_and_pushes_its_own_again(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        await a_round(peers)
        theirs = owner.replica.reference
        alone = theirs + RAMP
        member.replica.chain.replaced(1, b"m" * 32, member.me)
        member.replica.reference = alone
        member.replica.life.owner.made_tokens = 40

        await member.shards.sync_all()

        assert torch.equal(member.replica.reference, theirs) and member.replica.chain.digest == owner.replica.chain.digest
        assert member.replica.residual is not None
        assert torch.allclose(member.replica.residual, theirs - alone)
        assert member.replica.life.push.extra_tokens == 40 and member.replica.life.owner.made_tokens == 0
        assert {"shard.merged", "shard.fetched"} <= set(member.names())


@pytest.mark.parametrize("fields", [{"shard": 1}, {"digest": b"d" * 32}, {"version": 1 << 30}, {"payload": b"x"}])
async def test_a_whole_shard_that_cannot_be_is_not_taken_over(autojump_clock: object, fields: dict[str, Any]) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        await a_round(peers)
        member.replica.chain.replaced(0, b"e" * 32, owner.me)
        good = await member.ask(owner, GetShard(owner.run.id, 0))

        async def lie(*_: Any, **__: Any) -> ShardState:
            return msgspec.structs.replace(good, **fields)

        member.shards.states.rpc.ask = lie
        await member.shards.catch_up.fetch(member.replica, owner.me)

        assert member.replica.chain.digest == b"e" * 32 and "shard.sync_refused" in member.names()


async def test_an_owner_that_lies_for_ever_about_updates_is_asked_more_and_more_rarely(autojump_clock: object) -> None:
    """A newcomer that owns the shard and has nobody else to ask does not wait for it in every round."""
    async with peers_of(2) as (owner, member):

        async def lie(*_: Any, **__: Any) -> Updates:
            return Updates((Update(b"garbage", b"s" * 64, b""),), 0)

        member.shards.states.rpc.ask = lie
        pauses = []
        for _ in range(5):
            await member.shards.catch_up.fetch(member.replica, owner.me)
            pauses.append(member.replica.life.follower._not_before(owner.me) - trio.current_time())

        assert all(later == pytest.approx(2 * earlier) for earlier, later in pairwise(pauses))


async def test_a_busy_peer_is_asked_again_when_it_said(autojump_clock: object) -> None:
    async with peers_of(2) as (owner, member):
        asked_at: list[float] = []
        ask = member.shards.states.rpc.ask

        async def busy(peer: PeerId, request: Any, *how: Any, **deadline: Any) -> Any:
            asked_at.append(trio.current_time())
            return Busy(3000) if len(asked_at) < 3 else await ask(peer, request, *how, **deadline)

        member.shards.states.rpc.ask = busy
        await member.shards.sync_with(0, owner.me)

        assert len(asked_at) == 3 and min(b - a for a, b in pairwise(asked_at)) >= 3.0


async def test_a_peer_out_of_reach_is_told_of_in_the_log(autojump_clock: object) -> None:
    async with peers_of(2) as (owner, member):

        async def unreachable(peer: PeerId, *_: Any, **__: Any) -> Any:
            raise UnreachableError(peer, "the connection broke")

        member.shards.states.rpc.ask = unreachable
        assert await member.shards.catch_up.fetch(member.replica, owner.me) is None

        assert "shard.sync_failed" in member.names()


async def test_an_owner_asks_a_member_that_announces_a_newer_version(autojump_clock: object) -> None:
    """Nothing but updates of those whose versions are to be followed: here there are none, and the claim comes to nothing."""
    async with peers_of(3) as (owner, member, _):
        member.shards.states._marks[:4] = (9).to_bytes(4, "big")
        member.run.members.announcer.announce_soon()

        await until(lambda: owner.replica.life.follower._claims.get(member.me) is not None, 20)
        await until(lambda: owner.replica.life.follower._claims[member.me].pause_s > 0, 20)

        assert owner.replica.chain.version == 0


async def test_in_another_region_the_shard_is_taken_over_as_it_is_there(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        await a_round(peers)
        member.replica.chain.replaced(5, b"f" * 32, member.me)  # as in the region that it left
        member.replica.owner_residual = RAMP

        await member.shards.adopt_region()

        assert member.replica.chain.digest == owner.replica.chain.digest
        assert member.replica.owner_residual is None


# serving


async def test_what_is_answered_to_peers_that_catch_up(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        start = (0, owner.replica.chain.digest)
        await a_round(peers)
        await a_round(peers)
        chain = owner.replica.chain
        made = (1, member.replica.chain._digests[1])

        since = await member.ask(owner, GetUpdates(owner.run.id, 0, *start))
        assert isinstance(since, Updates) and len(since.updates) == 2 and since.at_version == 0
        whole = await member.ask(owner, GetUpdates(owner.run.id, 0, 1, b"o" * 32))
        assert isinstance(whole, ShardState) and whole.digest == chain.digest and not whole.ancestor
        nothing = await member.ask(owner, GetUpdates(owner.run.id, 0, 1, b"o" * 32, log_only=True))
        assert nothing == Updates((), None)
        states = (State(0, *start), State(0, *made), State(0, 1, b"o" * 32), State(0, 99, b"o" * 32))
        n_bytes = (await member.ask(owner, AncestryQuery(owner.run.id, states))).since
        assert n_bytes[0] > n_bytes[1] > 0 and n_bytes[2:] == (OTHER, UNKNOWN)
        assert await member.refused(owner, AncestryQuery(owner.run.id, (State(3, *start),))) == "DecodeError"


# owners that come and go


async def owner_with_state(peers: list[Peer]) -> None:
    for _ in range(2):
        await a_round(peers)
    assert peers[0].replica.owner_residual is not None and peers[0].replica.outer.momentum is not None


async def test_an_owner_that_leaves_gives_everything_to_the_next_one(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, following = peers
        await owner_with_state(peers)
        residual, momentum = owner.replica.owner_residual, owner.replica.outer.momentum
        assert residual is not None and momentum is not None

        await leave(owner.run)

        await until(lambda: following.owns)
        assert following.replica.owner_residual is not None and following.replica.owner_residual.equal(residual)
        assert following.replica.outer.momentum is not None and following.replica.outer.momentum.equal(momentum)
        assert "shard.handed_over" in owner.names() and owner.shards.handover.to_hand_over == (0, 0)


async def test_what_takes_too_long_is_given_in_a_byte_an_element(autojump_clock: object) -> None:
    from legion_p2p.core.contact import Bandwidth

    async with peers_of(2) as peers:
        owner, following = peers
        await owner_with_state(peers)
        residual = owner.replica.owner_residual
        assert residual is not None
        owner.world.bandwidths[owner.me] = Bandwidth(upload_bps=100.0)

        await leave(owner.run)

        taken = following.replica.owner_residual
        assert taken is not None and not taken.equal(residual) and torch.allclose(taken, residual, atol=0.02)


async def test_an_owner_that_stays_keeps_what_the_next_one_does_not_take(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, following = peers
        await owner_with_state(peers)
        residual = owner.replica.owner_residual
        following.shards.handover.leaving = True  # so that it refuses

        owner.replica.life.handle(Owners(Ownership(following.me, owner.me)), trio.current_time())
        owner.shards.states.wake(owner.replica)
        await until(lambda: "shard.handover_failed" in owner.names())

        assert owner.replica.residual is not None and owner.replica.residual.equal(residual)


async def test_the_next_owner_of_a_dead_one_goes_on_from_what_any_survivor_has(autojump_clock: object) -> None:
    async with peers_of(4) as peers:
        owner = peers[0]
        await a_round(peers)
        standby = owner.shards.ownership(0).standby
        survivor = next(peer for peer in peers[1:] if peer.me != standby)
        deliver = owner.shards.forwarder.deliver

        async def to_one(replica: Replica, send: Any, update: Any) -> None:
            if send.peer == survivor.me:
                await deliver(replica, send, update)

        owner.shards.forwarder.deliver = to_one
        for peer in peers:
            peer.offer(RAMP)
        await until(lambda: survivor.replica.chain.version == 2)
        owner.world.kill(owner.me)

        following = next(peer for peer in peers if peer.me == standby)
        await until(lambda: following.owns)
        assert following.replica.chain.passed(2, survivor.replica.chain.digest)
        assert "shard.owned" in following.names()


def part_of(peer: Peer, value: Tensor = RAMP, **fields: Any) -> HandoverPart:
    chain = peer.replica.chain
    made = HandoverPart(peer.run.id, 0, chain.version, chain.digest, codec.get("fp32").encode(value))
    return msgspec.structs.replace(made, **fields)


async def test_a_part_that_comes_twice_counts_once_and_two_add_up(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        owner, member = peers
        await a_round(peers)
        take = member.shards.handover.on_handover

        for _ in range(2):
            assert (await take(owner.me, part_of(owner))).version == 1
        await take(owner.me, part_of(owner, version=2))
        await take(owner.me, part_of(owner, part="momentum"))
        await take(owner.me, part_of(owner, part="recent", n_recent=1))

        assert member.replica.owner_residual is not None
        assert torch.allclose(member.replica.owner_residual, 2 * RAMP)
        assert member.replica.outer.momentum is not None and member.replica.outer.n_recent == 1


async def test_parts_that_are_not_to_be_taken_are_refused(autojump_clock: object) -> None:
    async with peers_of(3) as peers:
        owner, member, other = peers
        await a_round(peers)
        take = member.shards.handover.on_handover
        huge = torch.full((N,), 3e38)
        await take(owner.me, part_of(owner, huge))

        with pytest.raises(NetworkError, match="made none"):
            await take(other.me, part_of(other))
        with pytest.raises(CodecError, match="are allowed"):
            await take(owner.me, part_of(owner, codec="int4"))
        with pytest.raises(CodecError, match="infinity"):
            await take(owner.me, part_of(owner, huge, version=2))
        await take(owner.me, part_of(owner, huge, part="momentum"))
        with pytest.raises(CodecError, match="infinity"):
            await take(owner.me, part_of(owner, huge, part="momentum", version=0))
        assert (await take(owner.me, part_of(owner, payload=b"", digest=b"q" * 32))).version == 1
        await take(owner.me, part_of(owner, 0 * RAMP, digest=b"q" * 32))
        assert "shard.handover_of_other_state" in member.names()


async def test_an_owner_that_fetched_the_shard_whole_believes_the_proof_of_the_one_before(autojump_clock: object) -> None:
    async with peers_of(3) as peers:
        owner, member, _ = peers
        await a_round(peers)
        made = owner.replica.chain.last()
        assert made is not None
        chain = member.replica.chain
        chain.replaced(chain.version, chain.digest, member.me)  # as a newcomer has it: without the update
        member.replica.life.handle(Owners(Ownership(member.me, owner.me)), trio.current_time())
        member.shards.states._owners = (Ownership(member.me, owner.me),)
        take = member.shards.handover.on_handover

        with pytest.raises(NetworkError, match="made none"):
            await take(owner.me, part_of(owner))
        await take(owner.me, part_of(owner, header=made.update.header, signature=made.update.signature))

        assert member.replica.owner_residual is not None


async def test_what_a_peer_announces_of_its_shards_is_what_it_holds(autojump_clock: object) -> None:
    async with peers_of(2) as peers:
        await a_round(peers)
        chain = peers[0].replica.chain

        marks = peers[0].shards.marks()

        mark = mark_of(chain.version, chain.digest)
        assert marks == mark.version.to_bytes(4, "big") + mark.prefix.to_bytes(4, "big")
