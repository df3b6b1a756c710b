"""Which checkpoints a newcomer builds on: what members publish, confirm and deny, in a simulated network without training."""

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import decode_base, decode_manifest, decode_shard
from legion_p2p.core.member import Liveness, Member
from legion_p2p.core.wire import OTHER, UNKNOWN, AncestryQuery, AncestryReply, Checkpoints, GetCheckpoints
from legion_p2p.errors import DecodeError, SignatureError
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.checkpoint.block_cache import MemoryBlocks
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.services.checkpoint.replay import replay
from legion_p2p.services.checkpoint.select import Candidate, CheckpointSelection
from legion_p2p.sim.network import World
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import put_node
from legion_p2p.tensor.flatten import digest
from tests.checkpoint_of import Run
from tests.context_of import context_of, inline
from tests.unit.test_block_exchange import Directory, Provider, identity

REGION = "home"
Verdict = Callable[[int], int]
"""(number of the state in the question) -> what a member says of it."""


class Members:
    """The members of a run as a newcomer knows them."""

    def __init__(self, members: Iterable[PeerId]) -> None:
        said = [Announcement(peer, "run", ready=True, region=REGION, weight=1.0) for peer in members]
        self.rows = [Member(announcement, Liveness.ALIVE, 0) for announcement in said]
        self.table = self.roster = self

    def counted(self) -> list[Member]:
        return self.rows

    def is_known(self, peer: PeerId) -> bool:
        return any(row.peer_id == peer for row in self.rows)


class Scene:
    """Members with checkpoints of one run, and a newcomer."""

    def __init__(self, world: World, store: BlockStore, names: str, known: str) -> None:
        self.run = Run(shard_elements=1 << 20)
        self.store = store
        self.providers = {name: Provider(world, name, store) for name in names}
        self.newcomer = world.join(identity("newcomer"))
        self.members: Any = Members(self.providers[name].id for name in known)
        self.events: list[Event] = []
        for provider in self.providers.values():
            self.newcomer.messenger.add_addresses(provider.id, provider.network.messenger.addresses())
        self.run.put_bases(store)
        self.here = MemoryBlocks()
        """The newcomer was stopped while it joined: it has the blocks of the bases, as where a checkpoint is the cheaper way."""
        for base in self.run.bases:
            self.here.put_all((leaf, store.get(leaf)) for leaf in decode_base(store.get(base)).leaves)
        for shard in range(self.run.plan.n_shards):
            self.run.update(store, shard)

    def publish(self, name: str, **changes: Any) -> Cid:
        return self.run.publish(self.store, publisher=identity(name), **changes)

    def tells(self, name: str, *roots: Cid, verdict: Verdict = lambda n: 10) -> None:
        """What a member answers: its checkpoints, and which states it comes from."""

        async def checkpoints(peer: PeerId, message: GetCheckpoints) -> Checkpoints:
            return Checkpoints(tuple(root.raw for root in roots))

        async def ancestry(peer: PeerId, message: AncestryQuery) -> AncestryReply:
            return AncestryReply(tuple(map(verdict, range(len(message.states)))))

        self.providers[name].dispatcher.on(GetCheckpoints, checkpoints)
        self.providers[name].dispatcher.on(AncestryQuery, ancestry)

    async def weigh(self) -> dict[int, Candidate]:
        events = Events()
        events.add_sink(self.events.append)
        directory: Any = Directory(list(self.providers.values()))
        run = str(Cid.of(self.run.signed.spec))
        ctx = context_of(
            self.newcomer.identity, self.newcomer.messenger, spec=self.run.spec, run=run, discovery=directory, events=events,
            rng=random.Random(0),
        )  # fmt: skip
        fetcher = Fetcher(self.newcomer.messenger, directory, self.here, inline, events)
        return await CheckpointSelection(ctx, self.members, REGION, fetcher, self.here).weigh()

    def not_believed(self) -> list[str]:
        return [str(event.fields["reason"]) for event in self.events if event.name == "checkpoint.not_believed"]


@asynccontextmanager
async def scene(folder: Path, names: str = "ab", known: str | None = None) -> AsyncIterator[Scene]:
    with BlockStore(folder / "given") as store:
        async with World() as world:
            yield Scene(world, store, names, names if known is None else known)


async def test_a_shard_is_built_on_what_a_member_published_and_members_come_from(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.tells("a", s.publish("a"), verdict=lambda n: 10)
        s.tells("b", verdict=lambda n: 20)

        chosen = await s.weigh()

        assert set(chosen) == set(range(s.run.plan.n_shards))
        offer = chosen[0]
        assert (offer.state.version, offer.n_signers, offer.n_since_bytes) == (1, 1, 20)
        assert offer.judges == (s.providers["b"].id, s.providers["a"].id)  # the one that has most updates since comes first
        assert offer.n_bytes == offer.n_block_bytes + 20 <= 4 * s.run.plan.size(0)
        assert offer.leaves[: len(offer.base.leaves)] == offer.base.leaves


async def test_a_base_that_several_members_signed_counts_for_more(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path, "abc") as s:
        for name in "ab":
            s.tells(name, s.publish(name))
        s.tells("c")

        assert (await s.weigh())[0].n_signers == 2


async def test_what_more_members_deny_than_confirm_is_not_built_on(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path, "abc") as s:
        s.tells("a", s.publish("a"))
        for name in "bc":
            s.tells(name, verdict=lambda n: OTHER)

        assert await s.weigh() == {}


async def test_what_no_member_knows_anything_about_is_not_built_on(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.tells("a", s.publish("a"), verdict=lambda n: UNKNOWN)

        assert await s.weigh() == {}


async def test_a_checkpoint_that_no_member_published_is_not_looked_into(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path, "ab", known="b") as s:
        s.tells("b", s.publish("a"))

        assert await s.weigh() == {}
        assert [reason.split(" ", 1)[1] for reason in s.not_believed()] == ["is no member"]


async def test_a_member_that_names_what_is_no_checkpoint_of_the_run_is_reported(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        other = Run(shard_elements=1000, seed=1)
        other.put_bases(s.store)
        s.tells("a", other.publish(s.store, publisher=identity("a")), s.run.bases[0])

        assert await s.weigh() == {}
        assert sorted(reason[:8] for reason in s.not_believed()) == ["Manifest", f"run {Cid.of(other.signed.spec)}"[:8]]
        assert s.newcomer.refusals.score(s.providers["a"].id) > 0.5


async def test_a_shard_node_that_does_not_fit_the_run_is_left_out(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        root = s.publish("a")
        first = decode_manifest(s.store.get(root)).shards[0]
        elsewhere = msgspec.structs.replace(decode_shard(s.store.get(first)), shard=7)
        s.tells("a", s.publish("a", shards=(put_node(s.store, elsewhere),)))

        assert await s.weigh() == {}
        assert len(s.not_believed()) == 1


async def test_an_answer_about_another_number_of_states_counts_for_nothing(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.tells("a", s.publish("a"))

        async def wrong(peer: PeerId, message: AncestryQuery) -> AncestryReply:
            return AncestryReply((1,) * (len(message.states) + 1))

        s.providers["b"].dispatcher.on(AncestryQuery, wrong)

        assert (await s.weigh())[0].judges == (s.providers["a"].id,)
        assert s.newcomer.refusals.score(s.providers["b"].id) > 0.5


async def test_a_checkpoint_that_is_more_to_fetch_than_the_shard_is_not_taken(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.here = MemoryBlocks()
        s.tells("a", s.publish("a"))

        assert await s.weigh() == {}
        assert [(e.fields["n_believed"], e.fields["n_chosen"]) for e in s.events if e.name == "join.weighed"] == [(1, 0)]


async def test_where_nobody_keeps_checkpoints_nothing_is_chosen(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        assert await s.weigh() == {}
        assert [event.fields["n_checkpoints"] for event in s.events if event.name == "join.weighed"] == [0]


# replaying a log


def stored_log(folder: Path) -> tuple[Run, torch.Tensor, list[bytes]]:
    """A run of one shard, its start, and three updates as they are stored."""
    with BlockStore(folder / "log") as store:
        run = Run(shard_elements=1 << 20)
        run.put_bases(store)
        start = run.reference(0).clone()
        for _ in range(3):
            run.update(store, 0)
        return run, start, [b"".join(map(store.get, leaves)) for leaves in run.logs[0]]


def replayed(run: Run, start: torch.Tensor, messages: list[bytes], spec: Any = None, version: int = 0) -> list[torch.Tensor]:
    run_id = str(Cid.of(run.signed.spec))
    return [reference for _, reference in replay(run_id, spec or run.spec, 0, version, start, messages)]


def test_replaying_a_log_leads_to_the_bytes_that_it_was_made_of(tmp_path: Path) -> None:
    run, start, messages = stored_log(tmp_path)

    references = replayed(run, start, messages)

    assert len(references) == 3 and digest(references[-1]) == digest(run.reference(0))


@pytest.mark.parametrize("what", ["another order", "another start", "another run", "another codec", "no update", "a forgery"])
def test_a_log_that_does_not_fit_is_refused(tmp_path: Path, what: str) -> None:
    from legion_p2p.core.wire import Done, Update, decode_request, encode

    run, start, messages = stored_log(tmp_path)
    spec = msgspec.structs.replace(run.spec, round=msgspec.structs.replace(run.spec.round, update_codec="fp32"))
    first = decode_request(messages[0])
    assert isinstance(first, Update)
    forged = encode(msgspec.structs.replace(first, signature=bytes(64)))
    error = SignatureError if what == "a forgery" else DecodeError

    with pytest.raises(error):
        if what == "another run":
            list(replay("another", run.spec, 0, 0, start, messages))
        elif what == "another codec":
            replayed(run, start, messages, spec)
        else:
            changed = {"another order": messages[::-1], "no update": [encode(Done())], "a forgery": [forged]}.get(what, messages)
            replayed(run, start + 1 if what == "another start" else start, changed)


def test_an_update_whose_payload_was_changed_is_refused(tmp_path: Path) -> None:
    from legion_p2p.core.wire import Update, decode_request, encode

    run, start, messages = stored_log(tmp_path)
    first = decode_request(messages[0])
    assert isinstance(first, Update)
    payload = bytes(first.payload[:-1]) + bytes([first.payload[-1] ^ 1])

    with pytest.raises(DecodeError, match="not what the update to it says"):
        replayed(run, start, [encode(msgspec.structs.replace(first, payload=payload))])
