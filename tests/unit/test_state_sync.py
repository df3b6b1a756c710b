"""Fetching a run's model: shards whole from members that are busy, slow or lie, and shards that are built on checkpoints."""

import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.config import PeerConfig
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Blocks, Busy, GetBlocks, GetShard, GetUpdates, Ping, ShardState, Updates, decode_request, encode
from legion_p2p.errors import JoinError, RefusedError, StoreError, UnreachableError
from legion_p2p.observe.events import Event
from legion_p2p.services.checkpoint.provider_scheduler import ProviderScheduler
from legion_p2p.services.checkpoint.select import CheckpointSelection
from legion_p2p.services.run import fetch_shards, state_sync
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.arrivals import Arrivals
from legion_p2p.services.run.build_shards import GROUP_BYTES, groups
from legion_p2p.services.run.fetch_shards import BUSY_PATIENCE_S, FETCH_DEADLINE_S, FETCH_S, ShardFetcher
from legion_p2p.services.run.joiner import creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.shards.replica import LocalChange
from legion_p2p.sim.network import World
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from tests.context_of import context_of
from tests.parts_of import ROUND, creation_of, identity_of, log_of, parts_of

Answer = Callable[[PeerId, Any], Any]
SHARD = torch.arange(16.0)


def state(value: Tensor = SHARD, *, shard: int = 0, version: int = 3, of: Tensor | None = None) -> ShardState:
    payload = codec.get("fp32").encode(value)
    return ShardState(shard, version, digest(value if of is None else of), (), payload, ancestor=False)


class Members:
    """The announcements of others, all ready and in the same region."""

    def __init__(self, *peers: str) -> None:
        self.changed = Notify()
        self.announcements = [Announcement(peer, "run", region="here", ready=True, weight=1.0) for peer in peers]
        self.table = self

    def counted(self) -> list[Any]:
        return [SimpleNamespace(announcement=a) for a in self.announcements]


class Newcomer:
    """A fetcher of shards whose questions are answered by a function."""

    def __init__(self, answer: Answer, *peers: str) -> None:
        self.asked: list[tuple[PeerId, Any]] = []
        self.reported: list[PeerId] = []
        self.members: Any = Members(*peers)
        self._answer = answer
        messenger: Any = SimpleNamespace(
            request=self._request, report=lambda peer, why: self.reported.append(peer), bandwidth=lambda: None
        )
        self.ctx = context_of(identity_of("newcomer"), messenger, rng=random.Random(1))
        self.log: list[Event] = []
        self.ctx.events.add_sink(self.log.append)

    async def _request(self, peer: PeerId, body: bytes, *how: Any) -> bytes:
        message = decode_request(body)
        self.asked.append((peer, message))
        await trio.sleep(0.1)
        answer = self._answer(peer, message)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await trio.sleep_forever()
        return answer if isinstance(answer, bytes) else encode(answer)

    async def fetch(self, start: Tensor | None = None) -> Arrivals:
        arrivals = Arrivals()
        turns = ProviderScheduler(self.ctx.events, self.ctx.rng)
        await ShardFetcher(self.ctx, self.members, "here", turns, arrivals).fetch(start, 0)
        return arrivals

    def names(self) -> list[str]:
        return [event.name for event in self.log]


async def test_a_shard_comes_from_a_member_and_is_what_its_digest_says(autojump_clock: object) -> None:
    newcomer = Newcomer(lambda peer, message: state(), "a")

    arrivals = await newcomer.fetch()

    assert arrivals.shards[0].reference.equal(SHARD) and arrivals.shards[0].chain.version == 3
    assert arrivals.donors == {"a"} and arrivals.quiet_s() == 0
    assert newcomer.names() == ["shard.fetched"]


@pytest.mark.parametrize(
    "lie",
    [state(of=SHARD + 1), state(shard=1), state(SHARD[:3]), b"\xc1garbage", Updates((), None)],
    ids=["other bytes", "another shard", "too short", "garbage", "another answer"],
)
async def test_a_member_that_lies_is_reported_and_another_one_is_asked(lie: Any, autojump_clock: object) -> None:
    def answer(peer: PeerId, message: Any) -> Any:
        return lie if len(newcomer.asked) == 1 else state()

    newcomer = Newcomer(answer, "a", "b")

    arrivals = await newcomer.fetch()

    (liar, _), (donor, _) = newcomer.asked
    assert newcomer.reported == [liar] and arrivals.donors == {donor} and liar != donor
    assert newcomer.names() == ["shard.fetch_refused", "shard.fetched"]


@pytest.mark.parametrize("failure", [UnreachableError("x", "gone"), RefusedError("x", "NetworkError", "no")])
async def test_a_member_that_fails_is_left_out_until_all_have_failed(failure: Exception, autojump_clock: object) -> None:
    def answer(peer: PeerId, message: Any) -> Any:
        return failure if len(newcomer.asked) < 3 else state()

    newcomer = Newcomer(answer, "a", "b")

    arrivals = await newcomer.fetch()

    asked = [peer for peer, _ in newcomer.asked]
    assert set(asked[:2]) == {"a", "b"} and arrivals.donors == {asked[2]}
    assert newcomer.names() == ["shard.fetch_failed"] * 2 + ["shard.fetched"] and not newcomer.reported


async def test_a_silent_member_is_given_up_after_a_while(autojump_clock: object) -> None:
    newcomer = Newcomer(lambda peer, message: None if len(newcomer.asked) == 1 else state(), "a", "b")

    arrivals = await newcomer.fetch()

    assert trio.current_time() == pytest.approx(FETCH_DEADLINE_S, abs=1) and arrivals.donors == {newcomer.asked[1][0]}


async def test_where_nobody_can_send_a_shard_joining_ends(autojump_clock: object) -> None:
    began = trio.current_time()
    newcomer = Newcomer(lambda peer, message: UnreachableError(peer, "gone"), "a")

    with pytest.raises(JoinError, match="none of 1 members could send it"):
        await newcomer.fetch()
    assert FETCH_S <= trio.current_time() - began < FETCH_S + 10


async def test_where_no_member_holds_the_model_joining_ends(autojump_clock: object) -> None:
    with pytest.raises(JoinError, match="none of 0 members"):
        await Newcomer(lambda peer, message: state()).fetch()


async def test_a_busy_member_is_asked_again_after_others(autojump_clock: object) -> None:
    def answer(peer: PeerId, message: Any) -> Any:
        return Busy(2000) if len(newcomer.asked) < 3 else state()

    newcomer = Newcomer(answer, "a", "b")

    await newcomer.fetch()

    assert {peer for peer, _ in newcomer.asked[:2]} == {"a", "b"}
    assert newcomer.names() == ["donor.busy", "donor.busy", "shard.fetched"]
    assert trio.current_time() >= 1.0


async def test_where_all_stay_busy_and_nothing_comes_in_joining_ends(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_shards, "BUSY_PATIENCE_S", 30.0)
    assert BUSY_PATIENCE_S > 30
    with pytest.raises(JoinError, match="busy with others"):
        await Newcomer(lambda peer, message: Busy(5000), "a", "b").fetch()
    assert trio.current_time() > 30


async def test_a_shard_that_is_still_at_the_start_does_not_travel(autojump_clock: object) -> None:
    newcomer = Newcomer(lambda peer, message: Updates((), 0), "a")

    arrivals = await newcomer.fetch(torch.arange(64.0))

    assert arrivals.shards[0].reference.equal(torch.arange(16.0)) and arrivals.shards[0].chain.version == 0
    assert [type(message) for _, message in newcomer.asked] == [GetUpdates]


@pytest.mark.parametrize("answer", [Updates((), None), UnreachableError("a", "gone"), Busy(10)])
async def test_a_shard_that_has_left_the_start_is_fetched(answer: Any, autojump_clock: object) -> None:
    newcomer = Newcomer(lambda peer, message: state() if isinstance(message, GetShard) else answer, "a")

    arrivals = await newcomer.fetch(torch.arange(64.0))

    assert arrivals.shards[0].chain.version == 3


async def test_owner_and_standby_are_asked_before_the_rest(autojump_clock: object) -> None:
    peers = [f"peer {i}" for i in range(8)]
    newcomer = Newcomer(lambda peer, message: UnreachableError(peer, "gone"), *peers)
    turns = ProviderScheduler(newcomer.ctx.events, newcomer.ctx.rng)
    fetcher = ShardFetcher(newcomer.ctx, newcomer.members, "here", turns, Arrivals())
    owners = fetcher._placement.owners("here", dict.fromkeys(map(PeerId, peers), 1.0))[0]

    holders = fetcher._holders(0)

    assert holders[:2] == [owners.owner, owners.standby] and sorted(holders) == peers


def test_shards_are_built_in_groups_that_fit_into_memory() -> None:
    candidates: Any = dict.fromkeys(range(5))
    quarter = GROUP_BYTES // 16

    assert list(groups(candidates, lambda shard: quarter)) == [[0, 1, 2, 3], [4]]
    assert list(groups(candidates, lambda shard: GROUP_BYTES)) == [[0], [1], [2], [3], [4]]
    assert list(groups({}, lambda shard: 1)) == []


# on checkpoints

LARGE = msgspec.structs.replace(ROUND, shard_elements=4096, push_codec="int8", update_codec="int8")
ZEROS = torch.zeros(1 << 14)  # its blocks are smaller than the shard
CONFIG = PeerConfig(checkpoints=CheckpointConfig(every_s=1.0, gather_s=2.0))


def archive_at(path: Path, name: str) -> closing[Archive]:
    return closing(Archive(BlockStore(path / name), identity_of(name)))


async def advance(runs: Sequence[ActiveRun], n_versions: int) -> None:
    """Change every shard that many times, as trainers do that all hand in a change of the same size."""
    for _ in range(n_versions):
        before = versions(runs[0])
        for run in runs:
            for shard, replica in run.shards.replicas.items():
                change = LocalChange(shard, replica.chain.version, replica.reference, replica.reference + 0.5, 1, 1)
                run.contribute([change])
        with trio.fail_after(60):
            while any(now <= then for run in runs for now, then in zip(versions(run), before, strict=True)):  # noqa: ASYNC110
                await trio.sleep(0.05)
        for run in runs:
            run.mailbox.drain()


def versions(run: ActiveRun) -> list[int]:
    return [replica.chain.version for _, replica in sorted(run.shards.replicas.items())]


@asynccontextmanager
async def a_run_with_checkpoints(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[PeerParts, ActiveRun]]:
    """A run of two that have trained, the first of which has stored it; and the parts of a peer that may join."""
    monkeypatch.setattr(state_sync, "WORTH_SELECTING_BYTES", 0)
    async with World() as world:
        with archive_at(path, "first") as archive:
            first = parts_of(world, "first", archive=archive, config=CONFIG)
            other, late = parts_of(world, "other"), parts_of(world, "late", config=CONFIG)
            async with creating(first, creation_of(start=ZEROS, rounds=LARGE)) as run:
                for parts in (other, late):
                    parts.network.messenger.add_addresses(run.me, first.network.messenger.addresses())
                    await parts.network.messenger.request(run.me, encode(Ping(run.id)))
                async with joining(other, run.id):
                    await advance([run], 3)  # of one peer: two push into one round or into two, and a log of six is not worth it
                    with trio.fail_after(60):
                        while run.checkpoints.stored_marks != run.shards.marks():  # noqa: ASYNC110
                            await trio.sleep(0.1)
                    await trio.sleep(10)  # what both hold has got about
                    yield late, run


def intercepted(parts: PeerParts, monkeypatch: pytest.MonkeyPatch, kind: type, change: Callable[[Any], Any]) -> None:
    """Every reply to a request of this kind is `change(request)` instead, unless that is None."""
    request = parts.network.messenger.request

    async def other(peer: PeerId, body: bytes, *how: Any, **more: Any) -> bytes:
        message = decode_request(body)
        reply = change(message) if isinstance(message, kind) else None
        return await request(peer, body, *how, **more) if reply is None else encode(reply)

    monkeypatch.setattr(parts.network.messenger, "request", other)


async def test_shards_are_built_on_a_checkpoint_that_members_confirm(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_with_checkpoints(tmp_path, monkeypatch) as (late, run):
        log = log_of(late)
        async with joining(late, run.id) as joined:
            assert joined.common_digest() == run.common_digest()
        assert {event.name for event in log} >= {"shard.built"}
        assert not [event for event in log if event.name == "shard.not_built"]


async def test_a_peer_with_a_store_keeps_the_blocks_that_it_fetched(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_with_checkpoints(tmp_path, monkeypatch) as (late, run):
        with archive_at(tmp_path, "late") as archive:
            async with joining(dataclasses.replace(late, archive=archive), run.id) as joined:
                await trio.sleep(5)
                assert joined.common_digest() == run.common_digest() and joined.checkpoints.newest is not None


async def test_shards_whose_blocks_nobody_gives_are_fetched_whole(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_with_checkpoints(tmp_path, monkeypatch) as (late, run):
        log = log_of(late)
        nodes: list[int] = []

        def no_leaves(message: GetBlocks) -> Blocks:
            nodes.append(len(message.cids))
            return Blocks(tuple(b"" for _ in message.cids))

        intercepted(late, monkeypatch, GetBlocks, no_leaves)
        async with joining(late, run.id) as joined:
            assert joined.common_digest() == run.common_digest()
        names = [event.name for event in log]
        assert nodes and "shard.fetched" in names and "shard.built" not in names


async def test_updates_since_a_checkpoint_that_lead_elsewhere_are_reported_and_fetched_later(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_with_checkpoints(tmp_path, monkeypatch) as (late, run):
        reported: list[PeerId] = []
        monkeypatch.setattr(late.network.messenger, "report", lambda peer, why: reported.append(peer))
        last = run.shards.replicas[1].chain.last()
        assert last is not None

        def lie_once(message: GetUpdates) -> Updates | None:
            return None if reported else Updates((last.update,), message.version)

        intercepted(late, monkeypatch, GetUpdates, lie_once)
        async with joining(late, run.id) as joined:
            for _ in range(120):
                if joined.common_digest() == run.common_digest():
                    break
                await trio.sleep(0.5)
            assert joined.common_digest() == run.common_digest()
        assert reported


async def test_where_blocks_cannot_be_kept_every_shard_is_fetched_whole(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_run_with_checkpoints(tmp_path, monkeypatch) as (late, run):
        log = log_of(late)

        async def full(*args: Any) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr(CheckpointSelection, "weigh", full)
        async with joining(late, run.id) as joined:
            assert joined.common_digest() == run.common_digest()
        assert "join.no_store" in [event.name for event in log]
