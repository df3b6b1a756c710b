"""What a peer in a run answers, says of itself, and does when it leaves: peers over the network in memory, without training."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.announcement import unpack_marks
from legion_p2p.core.cids import Cid
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.departure import NOTICE_AFTER_S, NOTICE_EVERY_S
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import shard_key
from legion_p2p.core.run import run_key
from legion_p2p.core.wire import (
    Checkpoints,
    GetBlocks,
    GetCheckpoints,
    GetShard,
    GetSpec,
    Ping,
    SpecFound,
    encode,
)
from legion_p2p.errors import RefusedError
from legion_p2p.services.run import leaving
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.advertise import SETTLE_S, AdvertiseService
from legion_p2p.services.run.joiner import Joiner, creating, joining
from legion_p2p.services.run.leaving import leave
from legion_p2p.services.run.lobby import Lobby, PeerParts
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.status import describe, status_before, status_of
from legion_p2p.sim.network import World
from legion_p2p.sim.station import SimNetwork
from tests.parts_of import PARAMS, creation_of, identity_of, log_of, parts_of
from tests.replies import decode_reply
from tests.unit.test_joiner import met


@asynccontextmanager
async def a_run_and_a_stranger() -> AsyncIterator[tuple[PeerParts, ActiveRun, SimNetwork]]:
    async with World() as world:
        parts = parts_of(world, "first")
        async with creating(parts, creation_of()) as run:
            stranger = world.join(identity_of("stranger"))
            stranger.messenger.add_addresses(run.me, parts.network.messenger.addresses())
            yield parts, run, stranger


async def ask(stranger: SimNetwork, peer: PeerId, message: Any) -> Any:
    return decode_reply(await stranger.messenger.request(peer, encode(message)))


# before a run


async def test_before_it_is_in_a_run_a_peer_knows_of_none_and_keeps_no_blocks(autojump_clock: object) -> None:
    async with World() as world, trio.open_nursery() as nursery:
        parts = parts_of(world, "first")
        Joiner(Lobby(parts), nursery)
        stranger = world.join(identity_of("stranger"))
        me = parts.network.identity.peer_id
        stranger.messenger.add_addresses(me, parts.network.messenger.addresses())

        for message, kind in (
            (GetSpec("run"), "UnknownRunError"),
            (GetBlocks((Cid.of(b"block").raw,)), "NetworkError"),
            (Ping("run"), "IncompatibleModelError"),
            (GetShard("run", 0), "IncompatibleModelError"),
        ):
            with pytest.raises(RefusedError) as refused:
                await ask(stranger, me, message)
            assert refused.value.kind == kind
        with pytest.raises(RefusedError) as garbage:
            await stranger.messenger.request(me, b"\xc1garbage")
        assert garbage.value.kind == "DecodeError"
        nursery.cancel_scope.cancel()


async def test_before_it_is_in_a_run_the_status_says_joining(autojump_clock: object) -> None:
    async with World() as world:
        parts = parts_of(world, "first")
        parts.events.error("something.failed", "it did")
        status = status_before(Lobby(parts))

        assert (status.state, status.run, status.members, status.shards) == ("joining", None, (), ())
        assert status.peer_id == parts.network.identity.peer_id and status.addresses
        assert [error.text for error in status.errors] == ["it did"]


async def test_a_clock_that_is_set_does_not_change_how_long_a_peer_has_run(autojump_clock: object) -> None:
    async with World() as world:
        parts = parts_of(world, "first")
        now = [1_000_000.0]
        lobby = Lobby(dataclasses.replace(parts, wall_time=lambda: now[0]))

        now[0] -= 3600.0
        await trio.sleep(5)

        assert lobby.uptime_s() == pytest.approx(5.0)


# answers


async def test_a_member_tells_everybody_the_specification_by_name_and_id(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, stranger):
        for name in (run.spec.name, run.id):
            assert await ask(stranger, run.me, GetSpec(name)) == SpecFound(run.signed.spec, run.signed.signature)
        with pytest.raises(RefusedError) as refused:
            await ask(stranger, run.me, GetSpec("another"))
        assert refused.value.kind == "UnknownRunError"


async def test_a_request_about_another_run_is_refused(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, stranger):
        with pytest.raises(RefusedError, match="not in that run"):
            await ask(stranger, run.me, GetShard("another", 0))


async def test_a_member_without_a_store_says_that_it_keeps_no_checkpoints(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, stranger):
        for message in (GetBlocks((Cid.of(b"block").raw,)), GetCheckpoints(run.id)):
            with pytest.raises(RefusedError, match="keeps no checkpoints"):
                await ask(stranger, run.me, message)
        assert await ask(stranger, run.me, GetCheckpoints("another")) == Checkpoints(())


async def test_what_cannot_be_read_is_reported_and_refused(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_run_and_a_stranger() as (parts, run, stranger):
        reported: list[PeerId] = []
        monkeypatch.setattr(parts.network.messenger, "report", lambda peer, why: reported.append(peer))
        log = log_of(parts)

        with pytest.raises(RefusedError):
            await stranger.messenger.request(run.me, b"\xc1garbage")
        with pytest.raises(RefusedError, match="there are 16"):
            await ask(stranger, run.me, GetShard(run.id, 99))

        assert set(reported) == {stranger.peer_id} and len(reported) == 2
        assert "request.refused" in [event.name for event in log]


async def test_a_peer_that_has_left_refuses_so_that_senders_try_the_next_owner(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, stranger):
        await leave(run)

        with pytest.raises(RefusedError) as refused:
            await ask(stranger, run.me, Ping(run.id))
        assert refused.value.kind == "NetworkError"
        assert isinstance(await ask(stranger, run.me, GetSpec(run.id)), SpecFound)


# what a peer says of itself


async def test_the_announcement_follows_what_the_trainer_reports(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        run.report(Progress(step=7, tokens=70, tokens_per_s=10.0, loss=2.5, training=True, epoch=1, chunks=b"c"))
        said = describe(run)

        assert (said.step, said.run_step, said.tokens, said.loss) == (7, 7, 70, 2.5)
        assert said.ready and said.training and not said.done and said.epoch == 1 and said.chunks == b"c"
        assert len(unpack_marks(said.marks)) == run.plan.n_shards
        assert said.peer_id == run.me and said.run == run.id and said.region == "home" and said.weight == 1.0


async def test_a_peer_that_was_away_is_not_ready_and_does_not_train(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        run.report(Progress(training=True))
        run.members.absence.was_away = True

        assert not describe(run).ready and not describe(run).training


async def test_what_others_act_on_is_announced_at_once_and_the_rest_is_not(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        announced: list[None] = []
        monkeypatch.setattr(run.members.announcer, "announce_soon", lambda: announced.append(None))

        run.report(Progress(step=1))
        assert not announced
        run.report(Progress(step=1, training=True))
        run.report(Progress(step=1, done=True))
        run.report(Progress(step=1, done=True, epoch=2))
        assert len(announced) == 3


async def test_the_status_names_the_state_the_members_and_the_shards(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        states = []
        for progress in (Progress(), Progress(training=True), Progress(state="evaluating"), Progress(done=True)):
            run.report(progress)
            states.append(status_of(run).state)
        assert states == ["waiting", "training", "evaluating", "done"]

        status = status_of(run)
        assert status.run is not None and status.run.id == run.id and status.region == "home"
        (member,) = status.members
        assert member.peer_id == run.me and member.shards_owned == run.plan.n_shards and member.ready
        assert [(row.shard, row.version, row.owner) for row in status.shards] == [(s, 0, run.me) for s in range(16)]
        assert status.common_digest == run.common_digest()

        run.presence.suspend()
        assert status_of(run).state == "joining"
        run.presence.leave()
        assert status_of(run).state == "leaving"


async def test_the_status_knows_the_other_members_and_what_went_to_other_regions(autojump_clock: object) -> None:
    async with World() as world:
        first, second = parts_of(world, "first"), parts_of(world, "second", config=PeerConfig(region="away"))
        async with creating(first, creation_of()) as run:
            second.network.messenger.add_addresses(run.me, first.network.messenger.addresses())
            await second.network.messenger.request(run.me, encode(Ping(run.id)))
            async with joining(second, run.id):
                await trio.sleep(10)
                status = status_of(run)

                assert {m.peer_id: m.region for m in status.members} == {
                    run.me: "home",
                    second.network.identity.peer_id: "away",
                }
                assert status.bytes_across > 0


# the end of the training


async def test_a_peer_alone_is_done_when_its_trainer_is_and_nothing_waits(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        assert not run.all_done()
        run.report(Progress(done=True))
        assert run.all_done()


async def test_the_step_of_the_run_goes_on_from_where_this_peer_began(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, _):
        run.steps.began_at = 100
        run.report(Progress(step=5))
        assert run.run_step() == 105
        run.report(Progress(step=5, run_step=200))
        assert run.run_step() == 200


# leaving


async def test_a_peer_leaves_once(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (parts, run, _):
        log = log_of(parts)
        await leave(run)
        await leave(run)

        assert [event.name for event in log].count("run.left") == 1
        assert run.mailbox.closed == "this peer has left the run"


async def test_a_peer_that_never_held_the_model_hands_over_nothing(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_and_a_stranger() as (_, run, _):

        async def never() -> None:
            raise AssertionError("it has nothing to hand over")

        monkeypatch.setattr(run.shards, "hand_over_all", never)
        run.presence.suspend()
        await leave(run)
        assert run.presence.left


async def test_a_hand_over_that_takes_long_is_told_of_and_cut_off(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_and_a_stranger() as (parts, run, _):
        log, began = log_of(parts), trio.current_time()
        monkeypatch.setattr(leaving, "HAND_OVER_S", 10.0)
        monkeypatch.setattr(run.shards, "hand_over_all", trio.sleep_forever)
        monkeypatch.setattr(parts.network.messenger, "bandwidth", lambda: Bandwidth(upload_bps=8e6))

        await leave(run)

        told = [event for event in log if event.name == "run.handing_over"]
        assert [event.fields["remaining_s"] for event in told] == [0.0] * 3
        assert NOTICE_AFTER_S + 2 * NOTICE_EVERY_S < 10.0 <= NOTICE_AFTER_S + 3 * NOTICE_EVERY_S
        assert 10.0 <= trio.current_time() - began < 10.0 + leaving.FINISH_S + leaving.GOODBYE_S + 0.1
        assert run.presence.left


async def test_what_a_peer_owns_is_found_soon_after_it_changed_and_looked_at_only_then(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    wanted = AdvertiseService.wanted

    def counted(service: AdvertiseService) -> set[str]:
        looks.append(trio.current_time())
        return wanted(service)

    monkeypatch.setattr(AdvertiseService, "wanted", counted)
    async with World() as world:
        first, second = parts_of(world, "first"), parts_of(world, "second")
        async with creating(first, creation_of()) as one:
            await met(world, second, first)
            async with joining(second, "run", PARAMS) as two:
                await one.wait_for_members(2)
                await trio.sleep(2 * SETTLE_S)
                for shard in range(one.plan.n_shards):
                    owner = one.shards.ownership(shard).owner
                    asker = second if owner == one.me else first
                    found = await asker.network.discovery.find(shard_key(one.id, one.region, shard))
                    assert [contact.peer_id for contact in found] == [owner] and owner in (one.me, two.me)

                looks.clear()
                await trio.sleep(60)  # with an announcement of each every two seconds

                assert looks == []


async def test_a_peer_that_leaves_is_no_longer_found(autojump_clock: object) -> None:
    async with a_run_and_a_stranger() as (_, run, stranger):
        await trio.sleep(5)
        assert [contact.peer_id for contact in await stranger.discovery.find(run_key(run.id))] == [run.me]
        await leave(run)
        assert await stranger.discovery.find(run_key(run.id)) == ()
