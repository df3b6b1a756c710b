"""Writing down what a peer holds, while its shards go on: a real archive, and shards that do what the test says."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.announcement import Announcement, pack_marks
from legion_p2p.core.chain import Chain
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import decode_manifest
from legion_p2p.core.observers import Observers
from legion_p2p.core.run import run_id, sign_spec
from legion_p2p.core.wire import Update, UpdateHeader, encode
from legion_p2p.errors import DiskFullError
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.checkpoint import writer
from legion_p2p.services.checkpoint.writer import RETRY_S, SOON_S, CheckpointService
from legion_p2p.services.shards.states import AcceptedUpdate
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from tests.context_of import SPEC, context_of, inline

ME = Identity(b"m" * 32)
RUN = msgspec.structs.replace(SPEC, creator=ME.peer_id)
EVERY_S = 60.0


class Shards:
    """The shards of a peer that trains alone: every step of one is an update."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.plan = RUN.plan()
        self.replicas: dict[int, Any] = {}
        for shard in range(self.plan.n_shards):
            reference = torch.zeros(self.plan.size(shard))
            self.replicas[shard] = SimpleNamespace(
                shard=shard, reference=reference, chain=Chain(0, digest(reference), 1 << 20, ())
            )
        self.states = self
        self.updated: Observers[AcceptedUpdate] = Observers()
        self.replaced: Observers[Any] = Observers()

    def marks(self) -> bytes:
        return pack_marks([replica.chain.mark for replica in self.replicas.values()])

    def step(self, shard: int, tell: bool = True) -> None:
        """The shard has a new version, by an update."""
        replica = self.replicas[shard]
        payload = codec.get("fp32").encode(torch.ones(self.plan.size(shard)))
        after = replica.reference - 1
        header = UpdateHeader(
            self.run, shard, replica.chain.version + 1, replica.chain.digest, digest(after), ME.peer_id, "fp32", (), (), 1, 1
        )
        raw = encode(header)
        update = Update(raw, ME.sign(raw), payload)
        replica.reference = after
        replica.chain.applied(header, update)
        if tell:
            self.updated.tell(AcceptedUpdate(replica, header, update))

    def replace(self, shard: int) -> None:
        """The shard has bytes that no update led to."""
        replica = self.replicas[shard]
        replica.reference = torch.full((self.plan.size(shard),), 7.0)
        replica.chain = Chain(replica.chain.version + 1, digest(replica.reference), 1 << 20, ())
        self.replaced.tell(replica)


class Scene:
    """A peer that keeps checkpoints."""

    def __init__(self, archive: Archive, run: str) -> None:
        self.archive = archive
        self.shards = Shards(run)
        self.events: list[Event] = []
        self.n_disk = 0
        self.fails: Exception | None = None
        own = Announcement(ME.peer_id, run, addresses=("/ip4/127.0.0.1/tcp/1",), ready=True)
        members: Any = SimpleNamespace(roster=SimpleNamespace(everyone=lambda: [own]))
        events = Events()
        events.add_sink(self.events.append)
        messenger: Any = None
        config = PeerConfig(checkpoints=CheckpointConfig(every_s=EVERY_S))
        ctx = context_of(ME, messenger, spec=RUN, run=run, config=config, events=events, disk=self.disk)
        shards: Any = self.shards
        self.service = CheckpointService(ctx, archive, members, shards, lambda: 5, self.state)

    def state(self) -> Mapping[str, Any]:
        return {"seed": 3}

    async def disk(self, fn: Any, *args: Any) -> Any:
        self.n_disk += 1
        if self.fails is not None:
            raise self.fails
        return await inline(fn, *args)

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def holds(self, shard: int) -> bool:
        """What is on the disk of the shard leads to what is held."""
        chain = self.shards.replicas[shard].chain
        return self.archive.holds(shard, chain.version, chain.digest)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    signed = sign_spec(RUN, ME)
    with BlockStore(folder) as store:
        archive = Archive(store, ME)
        archive.open(signed)
        s = Scene(archive, run_id(signed))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.service.run_forever)
            await trio.testing.wait_all_tasks_blocked()
            yield s
            nursery.cancel_scope.cancel()
        archive.close()


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is killed here, so nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


async def test_the_first_manifest_names_all_shards_whole(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        assert s.service.newest is not None and s.names() == ["checkpoint.stored"]
        manifest = decode_manifest(s.archive.get(s.service.newest))
        assert (manifest.step, len(manifest.shards), manifest.state["seed"]) == (5, s.shards.plan.n_shards, 3)
        assert manifest.state["members"] == ME.peer_id
        assert s.service.stored_marks == s.shards.marks()
        assert s.archive.remembered() == [(ME.peer_id, ("/ip4/127.0.0.1/tcp/1",))]


async def test_an_update_is_in_the_journal_at_once_and_in_a_manifest_when_its_time_has_come(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with scene(tmp_path) as s:
        first = s.service.newest
        s.shards.step(0)
        await trio.sleep(0.1)
        assert s.archive.journal_bytes > 0 and s.holds(0) and s.service.newest == first

        await trio.sleep(EVERY_S + 1)

        assert s.service.newest != first and s.service.stored_marks == s.shards.marks()
        assert decode_manifest(s.archive.get(s.service.newest)).parent == str(first)


async def test_each_checkpoint_is_told_of_because_others_should_find_it_here(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        told: list[Cid] = []
        s.service.published.add(told.append)

        s.shards.step(0)
        await trio.sleep(EVERY_S + 1)

        assert told == [s.service.newest]


async def test_without_news_no_further_manifest_is_made(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        await trio.sleep(10 * EVERY_S)

        assert s.names() == ["checkpoint.stored"]


async def test_bytes_that_no_update_led_to_are_stored_whole_and_what_was_queued_before_is_forgotten(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with scene(tmp_path) as s:
        s.shards.step(0)
        s.shards.step(1)
        s.shards.replace(0)

        await trio.sleep(1)

        assert s.holds(0) and s.holds(1)


async def test_where_the_disk_is_too_slow_updates_are_left_out_and_a_manifest_makes_up_for_them(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as s:
        monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 10)
        await trio.sleep(1)
        s.shards.step(0)

        await trio.sleep(SOON_S / 2)
        assert not s.holds(0)
        await trio.sleep(SOON_S)

        assert s.holds(0) and s.service.stored_marks == s.shards.marks()


async def test_a_full_disk_is_told_once_and_all_is_stored_when_it_has_room_again(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.fails = DiskFullError("no room left")
        s.shards.step(0)
        await trio.sleep(2 * RETRY_S + 1)
        s.shards.step(0)
        s.shards.replace(1)
        assert s.names().count("checkpoint.failed") == 1

        s.fails = None
        await trio.sleep(RETRY_S + 1)

        assert s.names()[-1] == "checkpoint.resumed"
        assert s.holds(0) and s.holds(1) and s.service.stored_marks == s.shards.marks()


async def test_on_leaving_what_is_queued_is_written_and_a_last_manifest_made(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.shards.step(0)
        s.shards.step(1)

        await s.service.finish()

        assert s.service.stored_marks == s.shards.marks() and s.names() == ["checkpoint.stored"] * 2


async def test_a_service_that_never_ran_has_nothing_to_finish(tmp_path: Path) -> None:
    with BlockStore(tmp_path) as store:
        archive = Archive(store, ME)
        archive.open(sign_spec(RUN, ME))
        await Scene(archive, "run").service.finish()
        archive.close()


async def test_a_journal_that_has_grown_large_becomes_a_manifest_early(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as s:
        s.service._most_journal_bytes = 1
        await trio.sleep(1)
        first = s.service.newest
        s.shards.replace(0)

        await trio.sleep(SOON_S + 2)

        assert s.service.newest != first


async def test_a_base_is_written_when_its_turn_has_come(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        for _ in range(2 * s.service._base_every):
            s.shards.step(0)
        await trio.sleep(1)

        base, *_ = s.archive.shard(0)

        assert 0 < base.version <= s.shards.replicas[0].chain.version
