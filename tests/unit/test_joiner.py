"""Entering and leaving a run: peers over the network in memory, without training."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import GetSpec, encode
from legion_p2p.errors import (
    AmbiguousRunError,
    IncompatibleModelError,
    JoinError,
    RefusedError,
    RunExistsError,
    StoreError,
    UnknownRunError,
)
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.fitting import Fitting, Params, make_ready
from legion_p2p.services.run.joiner import Joiner, creating, joining
from legion_p2p.services.run.lobby import Lobby, PeerParts
from legion_p2p.services.run.run_discovery import ASK_DEADLINE_S, find_run
from legion_p2p.sim.network import World
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from tests.parts_of import NUMEL, PARAMS, ROUND, creation_of, identity_of, log_of, parts_of


async def met(world: World, parts: PeerParts, other: PeerParts) -> None:
    """`parts` is connected to `other`."""
    network = other.network
    parts.network.messenger.add_addresses(network.identity.peer_id, network.messenger.addresses())
    with suppress(RefusedError):  # the connection is what counts
        await parts.network.messenger.request(network.identity.peer_id, encode(GetSpec("no such run")))


@asynccontextmanager
async def a_run_of_one() -> AsyncIterator[tuple[World, PeerParts, ActiveRun]]:
    async with World() as world:
        parts = parts_of(world, "first")
        async with creating(parts, creation_of()) as run:
            yield world, parts, run


async def test_a_run_that_is_created_holds_the_initial_parameters(autojump_clock: object) -> None:
    async with World() as world:
        parts = parts_of(world, "first")
        log = log_of(parts)
        async with creating(parts, creation_of()) as run:
            assert run.presence.ready and run.region == "home"
            assert run.common_parameters().equal(torch.arange(float(NUMEL)))
            assert run.spec.creator == run.me and run.spec.nonce
            assert [event.name for event in log].count("run.created") == 1


async def test_a_peer_joins_by_name_and_by_id_and_holds_the_same_bytes(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        by_name, by_id = parts_of(world, "second"), parts_of(world, "third")
        await met(world, by_name, first)
        await met(world, by_id, first)
        async with joining(by_name, "run", PARAMS) as second, joining(by_id, run.id) as third:
            assert second.id == third.id == run.id
            assert second.common_digest() == third.common_digest() == run.common_digest()
            assert second.presence.ready and third.presence.ready
            await run.wait_for_members(3)


async def test_what_is_at_the_start_already_is_not_fetched(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, _):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        log = log_of(parts)
        async with joining(parts, "run", PARAMS, start=torch.arange(float(NUMEL))) as second:
            assert second.common_parameters().equal(torch.arange(float(NUMEL)))
            assert not [event for event in log if event.name == "shard.fetched"]


async def test_a_run_that_nobody_knows_is_an_error_that_names_it(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, _):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        with pytest.raises(UnknownRunError, match="other-run"):
            async with joining(parts, "other-run", search_s=2.0):
                pass


async def test_a_name_that_is_taken_cannot_be_created(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, _):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        with pytest.raises(RunExistsError, match="join it with --run run"):
            async with creating(parts, creation_of()):
                pass


async def test_two_runs_of_one_name_are_told_apart_by_their_ids(autojump_clock: object) -> None:
    async with World() as world:
        a, b, c = (parts_of(world, name) for name in "abc")
        async with creating(a, creation_of()) as one, creating(b, creation_of()) as two:
            await met(world, c, a)
            await met(world, c, b)
            with pytest.raises(AmbiguousRunError) as told:
                async with joining(c, "run"):
                    pass
            assert set(told.value.run_ids) == {one.id, two.id}
            assert told.value.creators[two.id] == b.network.identity.peer_id in str(told.value)
            async with joining(c, f"run@{b.network.identity.peer_id}") as joined:
                assert joined.id == two.id
            with pytest.raises(UnknownRunError):
                async with joining(c, f"run@{c.network.identity.peer_id}", search_s=1.0):
                    pass


async def test_of_two_runs_of_one_name_a_peer_takes_the_one_that_it_was_in(autojump_clock: object) -> None:
    async with World() as world:
        a, b, c = (parts_of(world, name) for name in "abc")
        async with creating(a, creation_of()) as one, creating(b, creation_of()):
            await met(world, c, a)
            await met(world, c, b)
            network = c.network

            found = await find_run("run", network.messenger, network.discovery, c.events, preferred=one.id)

            assert (found.id, found.contacts) == (one.id, (a.network.identity.peer_id,))
            with pytest.raises(AmbiguousRunError):
                await find_run("run", network.messenger, network.discovery, c.events, preferred="bafkrei-another")


async def test_a_model_that_differs_is_refused_before_the_run_is_entered(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        other: Params = lambda spec: (ParamSpec("w", (NUMEL - 1,)),)  # noqa: E731
        with pytest.raises(IncompatibleModelError, match="parameter 0 differs"):
            async with joining(parts, "run", other):
                pass
        assert not run.members.roster.is_known(parts.network.identity.peer_id)


async def test_what_takes_long_to_make_ready_is_done_while_the_model_is_fetched_and_awaited(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        parts = parts_of(world, "second")
        fetched_at: list[float] = []
        parts.events.add_sink(lambda event: fetched_at.append(trio.current_time()) if event.name == "shard.fetched" else None)

        async def offload(fn: Callable[..., object], *args: object) -> object:
            if fn is make_ready:
                await trio.sleep(20.0)
            return fn(*args)

        await met(world, parts, first)
        read: list[RunSpec] = []
        began = trio.current_time()
        async with joining(replace(parts, offload=offload), "run", Fitting(lambda spec: PARAMS, read.append)) as second:
            assert read == [second.spec]
            assert len(fetched_at) == run.plan.n_shards
            assert max(fetched_at) < began + 10.0
            assert began + 20.0 <= trio.current_time() < began + 22.0


async def test_a_peer_that_cannot_make_itself_ready_does_not_take_part(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        parts = parts_of(world, "second")

        def unreadable(spec: RunSpec) -> None:
            raise StoreError("the text is gone")

        await met(world, parts, first)
        with pytest.raises(StoreError, match="the text is gone"):
            async with joining(parts, "run", Fitting(lambda spec: PARAMS, unreadable)):
                pass
        assert parts.network.identity.peer_id not in [member.peer_id for member in run.members.table.counted()]
        assert len(run.shards.owned()) == run.plan.n_shards


async def test_a_contact_that_never_answers_does_not_hold_up_a_newcomer(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, _):
        parts, silent = parts_of(world, "second"), parts_of(world, "silent")

        async def says_nothing(peer: PeerId, body: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        silent.network.messenger.serve(says_nothing)
        await met(world, parts, first)
        with trio.move_on_after(0.5):
            await met(world, parts, silent)
        began = trio.current_time()
        async with joining(parts, "run", PARAMS):
            assert trio.current_time() - began < 4.0 < ASK_DEADLINE_S


async def test_a_run_whose_codec_is_unknown_here_is_refused(autojump_clock: object) -> None:
    async with World() as world, trio.open_nursery() as nursery:
        joiner = Joiner(Lobby(parts_of(world, "first")), nursery)
        unknown = msgspec.structs.replace(ROUND, push_codec="from-the-future")
        with pytest.raises(IncompatibleModelError, match="needs another version of this program"):
            await joiner.create(creation_of(rounds=unknown))
        await joiner.leave()  # there is nothing to leave
        nursery.cancel_scope.cancel()


async def test_a_run_of_which_nobody_holds_the_model_cannot_be_joined(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        run.presence.suspend()
        run.members.announcer.announce_soon()
        parts = parts_of(world, "second")
        await met(world, parts, first)
        with pytest.raises(JoinError, match="no member that holds the model"):
            async with joining(parts, "run"):
                pass


async def test_a_peer_that_leaves_says_so_and_its_shards_go_to_those_who_stay(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        log = log_of(parts)
        async with joining(parts, "run") as second:
            await trio.sleep(5)
            owned = second.shards.owned()
            assert owned and len(owned) < run.plan.n_shards

        assert parts.mailbox.closed is not None
        assert log[-1].name == "run.left" and second.presence.left
        await trio.sleep(5)
        assert len(run.shards.owned()) == run.plan.n_shards
        assert run.members.roster.alone()


async def test_a_peer_that_is_cancelled_leaves_in_order(autojump_clock: object) -> None:
    async with a_run_of_one() as (world, first, run):
        parts = parts_of(world, "second")
        await met(world, parts, first)
        with trio.CancelScope() as scope:
            async with joining(parts, "run") as second:
                scope.cancel()
                await trio.sleep_forever()

        assert second.presence.left
        await trio.sleep(1)
        assert run.members.roster.alone()


def stored_at(path: Path, name: str) -> closing[Archive]:
    return closing(Archive(BlockStore(path / name), identity_of(name)))


async def test_a_run_goes_on_from_the_disk_where_nobody_is_left(tmp_path: Path, autojump_clock: object) -> None:
    config = PeerConfig(checkpoints=CheckpointConfig(every_s=1.0, gather_s=2.0))
    async with World() as world:
        with stored_at(tmp_path, "first") as archive:
            async with creating(parts_of(world, "first", archive=archive, config=config), creation_of()) as run:
                await trio.sleep(5)
                assert run.checkpoints.newest is not None and run.checkpoints.keys()
    async with World() as world:
        with stored_at(tmp_path, "first") as archive:
            parts = parts_of(world, "first", archive=archive, config=config)
            log = log_of(parts)
            async with joining(parts, "run", PARAMS) as again:
                assert again.id == run.id and again.presence.ready
                assert again.common_digest() == run.common_digest()
                assert again.restored is not None and again.restored.shards == ()
            assert "run.resumed" in [event.name for event in log]


async def test_a_run_that_goes_on_elsewhere_is_joined_from_the_disk(tmp_path: Path, autojump_clock: object) -> None:
    config = PeerConfig(checkpoints=CheckpointConfig(every_s=1.0, gather_s=2.0))
    async with a_run_of_one() as (world, first, run):
        with stored_at(tmp_path, "second") as archive:
            parts = parts_of(world, "second", archive=archive, config=config)
            await met(world, parts, first)
            async with joining(parts, "run") as second:
                await trio.sleep(5)
                assert second.restored is None
        with stored_at(tmp_path, "second") as archive:
            parts = parts_of(world, "second again", archive=archive, config=config)
            await met(world, parts, first)
            async with joining(parts, run.id) as again:
                assert again.restored is not None and again.common_digest() == run.common_digest()


async def test_a_peer_without_a_store_keeps_no_checkpoints(autojump_clock: object) -> None:
    async with a_run_of_one() as (_, _, run):
        assert run.checkpoints.newest is None and run.checkpoints.stored_marks == b""
        assert run.checkpoints.keys() == set() and await run.checkpoints.remembered() == []
        await run.checkpoints.finish()
