"""Two regions that sync their shards: one peer each, without training, over the network in memory.

What a copy moves by is put into the owner's residual, so the copies are moved apart by giving one owner a residual.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.config import PeerConfig
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Held, Ping, RelayRequest, SyncReply, SyncRequest, Unknown, encode
from legion_p2p.errors import CodecError, DecodeError, NetworkError, RemoteProtocolError, UnreachableError
from legion_p2p.services.inter_region.copies import RegionCopy
from legion_p2p.services.inter_region.pairs import CENTER, MAX_PAIRS, OpenRequest, PairState, PairStates
from legion_p2p.services.inter_region.responder import STALE
from legion_p2p.services.inter_region.sync_schedule import MAX_RATES, WHOLE
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import creating, joining
from legion_p2p.services.shards.replica import Replica
from legion_p2p.sim.network import World
from legion_p2p.tensor import codec
from tests.parts_of import ROUND, creation_of, log_of, parts_of

N = 64
SYNCED = msgspec.structs.replace(ROUND, shard_elements=N, sync_every=2, sync_codec="int8", sync_reach=0.0)
"""One shard; a sync may move a copy however far, unless a test says otherwise."""
FAR = torch.linspace(-1.0, 1.0, N)
LITTLE, MUCH = Bandwidth(upload_bps=1e6), Bandwidth(upload_bps=64e6)


class Side:
    """One peer and its log."""

    def __init__(self, run: ActiveRun) -> None:
        self.run = run
        self.log = log_of(run.lobby.parts)

    @property
    def sync(self) -> Any:
        return self.run.region_sync

    @property
    def replica(self) -> Replica:
        return self.run.shards.replicas[0]

    def copy(self) -> Tensor:
        return RegionCopy(self.replica).value()

    def push_apart(self, by: Tensor) -> None:
        RegionCopy(self.replica).subtract(by)

    def pair(self, other: str) -> PairState:
        pair: PairState = self.sync.pairs.get(0, self.run.region, other)
        return pair

    def names(self) -> list[str]:
        return [event.name for event in self.log]

    async def ask(self, other: str) -> None:
        await self.sync.requester.sync(self.replica, RegionCopy(self.replica), other)

    def train(self, n_versions: int) -> None:
        """As by rounds that changed nothing."""
        self.replica.chain.version += n_versions


@asynccontextmanager
async def two_regions(rounds: RoundSpec = SYNCED) -> AsyncIterator[tuple[World, Side, Side]]:
    """East and west, each of which owns the shard in its region."""
    async with World() as world:
        east, west = (parts_of(world, name, config=PeerConfig(region=name)) for name in ("east", "west"))
        async with creating(east, creation_of(rounds=rounds)) as first:
            west.network.messenger.add_addresses(first.me, east.network.messenger.addresses())
            await west.network.messenger.request(first.me, encode(Ping(first.id)))
            async with joining(west, "run") as second:
                await until(lambda: all(run.shards.owned() == [0] for run in (first, second)))
                await until(lambda: all(run.shards.replicas[0].round is not None for run in (first, second)))
                yield world, Side(first), Side(second)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.1)


def request_of(west: Side, value: Tensor, **fields: Any) -> SyncRequest:
    """As the west would ask the east for its first sync."""
    message = SyncRequest(west.run.id, 0, "west", 1, b"", 0.5, None, False, WHOLE, codec.get(WHOLE).encode(value))
    return msgspec.structs.replace(message, **fields)


# a sync


async def test_both_sides_move_towards_each_other_and_the_mean_stays(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        west.push_apart(FAR)
        mean, apart = (east.copy() + west.copy()) / 2, torch.dist(east.copy(), west.copy())

        for _ in range(3):
            east.train(2)
            west.train(2)
            await east.ask("west")

        assert torch.dist(east.copy(), west.copy()) < 0.6 * apart
        assert torch.allclose((east.copy() + west.copy()) / 2, mean, atol=1e-5)
        done = [event for event in east.log if event.name == "sync.done"]
        assert [event.fields["whole"] for event in done] == [True, False, False]
        assert [event.fields["codec"] for event in done] == [WHOLE, "int8", "int8"]


async def test_the_reference_changes_only_with_the_next_update(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        west.push_apart(FAR)
        before = east.replica.reference
        await east.ask("west")

        assert east.replica.reference is before and east.replica.owner_residual is not None


async def test_an_answer_that_was_lost_is_asked_for_again_and_counts_once(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_regions() as (_, east, west):
        west.push_apart(FAR)
        mean = (east.copy() + west.copy()) / 2
        ask = east.run.shards.ask_owner

        async def lose(peer: PeerId, message: Any) -> Any:
            await ask(peer, message)
            raise UnreachableError(peer, "the answer was lost")

        with monkeypatch.context() as losing:
            losing.setattr(east.run.shards, "ask_owner", lose)
            await east.ask("west")
        moved = west.copy()
        assert "sync.failed" in east.names() and not torch.allclose(east.copy() + west.copy(), 2 * mean)
        await east.ask("west")

        assert west.copy().equal(moved)
        assert torch.allclose((east.copy() + west.copy()) / 2, mean, atol=1e-5)


async def test_a_side_that_knows_something_else_makes_both_begin_again_with_the_whole_shard(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        await east.ask("west")
        west.pair("east").forget()
        east.train(2)
        west.train(2)
        await east.ask("west")

        done = [event.fields["whole"] for event in east.log if event.name == "sync.done"]
        assert done == [True, True]


async def test_a_refused_sync_is_noted_and_has_moved_nothing(autojump_clock: object) -> None:
    async with two_regions() as (_, east, _):
        await east.ask("west")
        before = east.copy()
        await east.ask("west")  # at the same version

        assert "sync.refused" in east.names() and east.copy().equal(before)
        assert east.pair("west").asked is None


async def test_nothing_is_asked_while_an_answer_is_awaited_or_where_nobody_represents_the_region(autojump_clock: object) -> None:
    async with two_regions() as (_, east, _):
        await east.ask("north")
        east.pair("west").is_asking = True
        await east.ask("west")

        assert not [name for name in east.names() if name.startswith("sync.")]


async def test_what_was_asked_of_a_former_representative_is_forgotten(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        await east.ask("west")
        pair = east.pair("west")
        message = request_of(east, east.copy(), region="east")
        pair.asked = OpenRequest(PeerId("gone"), message, None, east.copy(), east.copy(), 0.0, 0)
        east.train(2)
        west.train(2)
        await east.ask("west")

        assert [e.fields["whole"] for e in east.log if e.name == "sync.done"] == [True, True]


async def test_an_answer_that_is_none_or_moves_us_too_far_is_reported_and_moves_nothing(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = msgspec.structs.replace(SYNCED, sync_reach=1.0)
    async with two_regions(capped) as (_, east, _):
        reported: list[str] = []
        monkeypatch.setattr(east.run.network.messenger, "report", lambda peer, why: reported.append(why))
        before = east.copy()
        for answer in (
            SyncReply(codec.get(WHOLE).encode(before + 20 * FAR), None),
            SyncReply(codec.get(WHOLE).encode(before * 1e9), None),
            SyncReply(b"garbage", None),
            Held(1, b"d" * 32),
        ):

            async def lie(peer: PeerId, message: Any, answer: Any = answer) -> Any:
                return answer

            monkeypatch.setattr(east.run.shards, "ask_owner", lie)
            await east.ask("west")
            assert east.pair("west").known is None and east.pair("west").asked is None

        assert east.copy().equal(before) and len(reported) >= 3
        assert "at most" in reported[0]


async def test_a_peer_that_lost_the_shard_while_it_asked_moves_nothing(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_regions() as (_, east, west):
        west.push_apart(FAR)
        copy = RegionCopy(east.replica)
        before = copy.value()
        ask = east.run.shards.ask_owner

        async def relinquish(peer: PeerId, message: Any) -> Any:
            reply = await ask(peer, message)
            east.replica.life.owner.round = None
            return reply

        monkeypatch.setattr(east.run.shards, "ask_owner", relinquish)
        await east.sync.requester.sync(east.replica, copy, "west")
        assert "sync.lost" in east.names() and copy.value().equal(before)
        east.pair("west").forget()
        await east.sync.requester.sync(east.replica, copy, "west")  # it represents nothing: nothing is asked
        assert east.pair("west").asked is None


# what is refused


async def test_only_who_represents_a_shard_in_the_codecs_and_by_the_rule_of_the_run_is_answered(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        answer = east.sync.responder.on_request
        here = east.copy()
        for peer, message, error in (
            (PeerId("stranger"), request_of(west, here), RemoteProtocolError),
            (west.run.me, request_of(west, here, center=True), DecodeError),
            (west.run.me, request_of(west, here, region="east"), NetworkError),
            (west.run.me, request_of(west, here, codec="fp32"), CodecError),
            (west.run.me, request_of(west, here, known=b"d" * 32, codec=WHOLE), CodecError),
            (west.run.me, request_of(west, here, region="north"), NetworkError),
            (west.run.me, request_of(west, 1e30 * torch.ones(N)), DecodeError),
        ):
            with pytest.raises(error):
                await answer(peer, message)
        assert east.copy().equal(here) and "sync.done" not in east.names()


async def test_no_region_is_represented_by_one_that_is_proven_to_have_lied(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        schedule = east.sync.schedule
        assert schedule.owner("west", 0) == west.run.me and "west" in schedule.by_region()

        east.run.members.roster.excluded = lambda: told  # type: ignore[method-assign]
        told = frozenset({west.run.me})

        assert schedule.owner("west", 0) is None and not schedule.may_represent(west.run.me, "west", 0)
        assert "west" not in schedule.by_region() and "east" in schedule.by_region()


async def test_the_same_request_twice_gets_the_same_answer_and_one_step(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        message = request_of(west, west.copy() - FAR)
        first = await east.sync.on_request(west.run.me, message)
        moved = east.copy()

        assert await east.sync.on_request(west.run.me, message) == first
        assert east.copy().equal(moved)
        with pytest.raises(NetworkError, match="synced just before"):
            await east.sync.on_request(west.run.me, msgspec.structs.replace(message, exchange=2))


async def test_a_digest_that_is_not_known_is_answered_so(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        message = request_of(west, west.copy(), known=b"d" * 32, codec="int8")

        assert await east.sync.on_request(west.run.me, message) == Unknown()


async def test_of_two_regions_that_ask_each_other_at_once_one_is_answered(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        east.pair("west").is_asking = west.pair("east").is_asking = True

        with pytest.raises(NetworkError, match="just asking region west itself"):
            await east.sync.on_request(west.run.me, request_of(west, west.copy()))
        message = request_of(west, east.copy(), region="east")
        assert isinstance(await west.sync.on_request(east.run.me, message), SyncReply)


async def test_a_peer_that_represents_nothing_refuses(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        east.replica.life.owner.round = None
        with pytest.raises(NetworkError, match="not represented by this peer"):
            await east.sync.on_request(west.run.me, request_of(west, west.copy()))


async def test_a_copy_far_from_ours_moves_us_no_further_than_our_own_training_did(autojump_clock: object) -> None:
    async with two_regions(msgspec.structs.replace(SYNCED, sync_reach=1.5)) as (_, east, west):
        before = east.copy()
        reply = await east.sync.on_request(west.run.me, request_of(west, before + 10 * FAR))

        assert isinstance(reply, SyncReply) and reply.slowed_to is not None and reply.slowed_to < 0.5
        assert 0 < torch.dist(east.copy(), before) < 0.02 * before.norm()
        assert "sync.slowed" in east.names()


async def test_regions_that_drift_apart_begin_again(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        for i in range(12):
            east.train(2)
            west.train(2)
            west.push_apart(2.0**i * FAR)
            await east.ask("west")

        assert "sync.apart" in east.names()


# the center variable


async def test_the_first_region_that_syncs_with_the_center_finds_itself_there(autojump_clock: object) -> None:
    async with two_regions(msgspec.structs.replace(SYNCED, sync_rule="center")) as (_, east, west):
        keeper = east if east.sync.schedule.owner(CENTER, 0) == east.run.me else west
        other = west if keeper is east else east
        other.push_apart(FAR)
        before = other.copy()
        await other.ask(CENTER)
        assert torch.dist(other.copy(), before) < 0.05  # bf16 rounds it

        await keeper.ask(CENTER)
        other.train(2)
        await other.ask(CENTER)
        assert torch.dist(other.copy(), before) > 0.05
        with pytest.raises(NetworkError, match="center variable of shard 0 is not owned"):
            region = keeper.run.region
            await other.sync.on_request(keeper.run.me, request_of(keeper, before, center=True, region=region))


async def test_a_center_that_nobody_synced_with_for_long_begins_again(autojump_clock: object) -> None:
    async with two_regions(msgspec.structs.replace(SYNCED, sync_rule="center")) as (_, east, west):
        keeper = east if east.sync.schedule.owner(CENTER, 0) == east.run.me else west
        other = west if keeper is east else east
        await other.ask(CENTER)
        keeper.train(STALE * 2 + 1)
        other.train(STALE * 2 + 1)
        other.push_apart(FAR)
        before = other.copy()
        await other.ask(CENTER)

        assert torch.dist(other.copy(), before) < 0.05  # the old center would have drawn it back
        assert [e.fields["whole"] for e in other.log if e.name == "sync.done"] == [True, True]


# when


async def test_a_sync_is_due_at_the_interval_of_the_run_for_the_region_that_sorts_first(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        due = [east.sync.schedule.due(east.replica), west.sync.schedule.due(west.replica)]
        east.sync.schedule.last_sync(east.replica).times.last -= 2
        west.sync.schedule.last_sync(west.replica).times.last -= 2
        soon = [east.sync.schedule.due(east.replica), west.sync.schedule.due(west.replica)]
        west.sync.schedule.last_sync(west.replica).times.last -= 6

        assert due == [None, None] and soon == ["west", None]
        assert west.sync.schedule.due(west.replica) == "east"  # the east has begun nothing for too long


async def test_a_region_alone_syncs_with_no_region(autojump_clock: object) -> None:
    async with World() as world, creating(parts_of(world, "one"), creation_of(rounds=SYNCED)) as run:
        one = Side(run)
        one.sync.schedule.last_sync(one.replica).times.last -= 100

        assert one.sync.schedule.due(one.replica) is None


async def test_by_the_rule_of_the_center_each_region_syncs_with_it(autojump_clock: object) -> None:
    async with two_regions(msgspec.structs.replace(SYNCED, sync_rule="center")) as (_, east, west):
        for side in (east, west):
            side.sync.schedule.last_sync(side.replica).times.last -= 2
            assert side.sync.schedule.due(side.replica) == CENTER


async def test_shards_are_synced_when_they_are_due(autojump_clock: object) -> None:
    async with two_regions() as (_, east, west):
        for side in (east, west):
            side.train(2)
            side.replica.notify.notify()
        await trio.sleep(2)

        assert "sync.done" in east.names() and "sync.done" in west.names()


async def test_a_peer_that_moves_to_another_region_forgets_what_it_knew_as_an_owner(autojump_clock: object) -> None:
    async with two_regions() as (_, east, _):
        await east.ask("west")
        east.sync.forget()

        assert east.pair("west").known is None
        assert east.sync.schedule.last_sync(east.replica).times.last == east.replica.chain.version


async def test_a_narrow_connection_makes_syncs_rarer_and_sparser_and_a_wide_one_does_not(autojump_clock: object) -> None:
    rounds = msgspec.structs.replace(SYNCED, sync_codecs=("topk64-2bit",), max_sync_every=16)
    async with two_regions(rounds) as (world, east, west):
        schedule = east.sync.schedule
        first = schedule.interval(east.replica, "west")
        assert (first.every, first.codec) == (2, WHOLE)
        await east.ask("west")
        found = []
        for upload_bps in (1e9, 20.0, 1e-3):
            for side in (east, west):
                world.bandwidths[side.run.me] = Bandwidth(upload_bps=upload_bps, download_bps=upload_bps)
                side.run.members.announcer.announce_soon()
            await trio.sleep(5)
            east.train(5)
            found.append(schedule.interval(east.replica, "west"))

        assert [i.every for i in found] == sorted(i.every for i in found) and found[-1].every == 16
        assert found[0].codec == "int8" and found[-1].codec == "topk64-2bit"


async def test_a_synchronous_run_syncs_in_one_codec_at_one_interval(autojump_clock: object) -> None:
    rounds = msgspec.structs.replace(SYNCED, synchronous=True)
    async with two_regions(rounds) as (_, east, _):
        assert east.sync.schedule.interval(east.replica, "west").codec == WHOLE
        await east.ask("west")
        assert east.sync.schedule.interval(east.replica, "west").codec == "int8"


async def test_only_some_rates_are_remembered(autojump_clock: object) -> None:
    async with two_regions() as (_, east, _):
        rate = east.sync.schedule.rate
        first = rate(PeerId("peer 0"))
        for i in range(1, MAX_RATES + 1):
            rate(PeerId(f"peer {i}"))

        assert rate(PeerId("peer 0")) is not first


def test_only_some_other_regions_are_remembered_and_the_oldest_goes_first() -> None:
    pairs = PairStates(0.5)
    states = [pairs.get(0, "here", f"region {i}") for i in range(MAX_PAIRS)]
    assert pairs.get(0, "here", "region 0") is states[0]  # used: now region 1 is the oldest
    pairs.get(0, "here", "one more")

    assert pairs.get(0, "here", "region 0") is states[0]
    assert pairs.get(0, "here", "region 1") is not states[1]


def test_what_is_known_as_an_owner_and_as_the_centers_owner_is_forgotten_apart() -> None:
    pairs = PairStates(0.5)
    region, center = pairs.get(0, "here", "there"), pairs.get(0, CENTER, "there")

    pairs.forget_region(0)
    assert pairs.get(0, CENTER, "there") is center and pairs.get(0, "here", "there") is not region
    region = pairs.get(0, "here", "there")
    pairs.forget_center(0)
    assert pairs.get(0, "here", "there") is region and pairs.get(0, CENTER, "there") is not center
    pairs.clear()
    assert pairs.get(0, "here", "there") is not region


# relays


@asynccontextmanager
async def with_a_relay() -> AsyncIterator[tuple[World, Side, Side, Side]]:
    """East, west, and a peer of the west that has volunteered, owns nothing, and has much more upload."""
    rounds = msgspec.structs.replace(SYNCED, sync_reach=1.5)
    async with two_regions(rounds) as (world, east, west):
        world.bandwidths[east.run.me] = world.bandwidths[west.run.me] = LITTLE
        parts = parts_of(world, "relay", config=PeerConfig(region="west", weight=0.0, volunteer_relay=True))
        world.bandwidths[parts.network.identity.peer_id] = MUCH
        parts.network.messenger.add_addresses(west.run.me, west.run.network.messenger.addresses())
        await parts.network.messenger.request(west.run.me, encode(Ping(west.run.id)))
        async with joining(parts, "run") as run:
            relay = Side(run)
            for side in (east, west, relay):
                side.run.members.announcer.announce_soon()
            await until(lambda: all(s.sync.schedule.representative("west", 0) == run.me for s in (east, west, relay)))
            yield world, east, west, relay


def step_of(relay: Side, step: Tensor, *, number: int = 1, name: str = WHOLE) -> RelayRequest:
    return RelayRequest(relay.run.id, 0, number, name, codec.get(name).encode(step))


async def test_a_relay_syncs_and_the_owner_gets_what_the_copy_moved_by(autojump_clock: object) -> None:
    async with with_a_relay() as (_, east, west, relay):
        before = west.copy()
        east.push_apart(0.01 * FAR)
        estimate = relay.sync.relay.copy(relay.replica)
        await relay.sync.requester.sync(relay.replica, estimate, "east")
        assert estimate.is_due and torch.dist(estimate.value(), before) > 0
        moved = estimate.value()

        assert await relay.sync.relay.deliver(relay.replica, "int8") == "int8"
        assert torch.dist(west.copy(), moved) < 0.1 * torch.dist(before, moved)
        assert "sync.relayed" in west.names()
        assert await relay.sync.relay.deliver(relay.replica, "int8") == ""  # once a version


async def test_the_owner_of_a_shard_that_a_relay_represents_waits_for_it(autojump_clock: object) -> None:
    async with with_a_relay() as (_, _, west, relay):
        west.sync.schedule.last_sync(west.replica).times.last -= 7
        assert west.sync.schedule.due(west.replica) is None
        west.sync.schedule.last_sync(west.replica).times.last -= 1
        assert west.sync.schedule.due(west.replica) == "east"  # it brings nothing: the owner syncs by itself
        assert relay.sync.schedule.may_represent(west.run.me, "west", 0)


async def test_a_step_counts_once_and_there_is_one_in_a_version(autojump_clock: object) -> None:
    async with with_a_relay() as (_, _, west, relay):
        take, step = west.sync.relay.on_request, 0.01 * FAR
        before = west.copy()
        await take(relay.run.me, step_of(relay, step))
        await take(relay.run.me, step_of(relay, step))

        assert torch.allclose(west.copy(), before - step, atol=1e-4)
        with pytest.raises(NetworkError, match="in this version already"):
            await take(relay.run.me, step_of(relay, step, number=2))


async def test_what_is_no_step_of_a_relay_is_refused(autojump_clock: object) -> None:
    async with with_a_relay() as (_, east, west, relay):
        take, before = west.sync.relay.on_request, west.copy()
        with pytest.raises(RemoteProtocolError, match="not a relay"):
            await take(east.run.me, step_of(relay, FAR))
        with pytest.raises(CodecError, match="this run allows bf16, int8"):
            await take(relay.run.me, step_of(relay, FAR, name="fp32"))
        with pytest.raises(DecodeError, match="a step of norm"):
            await take(relay.run.me, step_of(relay, 1e6 * FAR))
        with pytest.raises(NetworkError, match="not owned by this peer"):
            await relay.sync.relay.on_request(relay.run.me, step_of(relay, FAR))
        assert west.copy().equal(before)


async def test_a_relay_keeps_what_could_not_be_delivered_unless_the_owner_will_never_take_it(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_a_relay() as (_, _, west, relay):
        estimate = relay.sync.relay.copy(relay.replica)
        estimate.subtract(0.01 * FAR)

        async def fails(peer: PeerId, message: Any) -> Any:
            raise UnreachableError(peer, "gone")

        with monkeypatch.context() as failing:
            failing.setattr(relay.run.shards, "ask_owner", fails)
            assert await relay.sync.relay.deliver(relay.replica, "int8") == ""
        assert "sync.undelivered" in relay.names() and estimate.in_delivery is not None

        relay.train(1)
        assert await relay.sync.relay.deliver(relay.replica, WHOLE) == "int8"  # the same message again
        assert estimate.in_delivery is None

        relay.train(1)
        west.train(1)
        estimate.subtract(1e6 * FAR)
        assert await relay.sync.relay.deliver(relay.replica, "int8") == ""
        assert relay.sync.relay.copy(relay.replica) is not estimate  # it began again


async def test_a_relay_that_leaves_delivers_all_that_is_left(autojump_clock: object) -> None:
    async with with_a_relay() as (_, _, west, relay):
        before = west.copy()
        relay.sync.relay.copy(relay.replica).subtract(0.01 * FAR)
        relay.run.presence.leave()
        relay.run.members.announcer.announce_soon()
        await relay.sync.relay.finish_all()

        assert torch.allclose(west.copy(), before - 0.01 * FAR, atol=1e-4)
        assert not any(copy.undelivered.any() for copy in relay.sync.relay._copies.values())  # one made since has nothing
