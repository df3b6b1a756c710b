"""Giving and fetching the blocks of checkpoints, between peers of a simulated network that do nothing else."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from legion_p2p.core.cids import Cid
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.wire import Blocks, Busy, GetBlocks, HasBlocks, HeldBlocks
from legion_p2p.errors import DecodeError, MissingBlockError, NetworkError
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.checkpoint import serve
from legion_p2p.services.checkpoint.block_cache import MemoryBlocks
from legion_p2p.services.checkpoint.fetch import MAX_FAILURES, SEARCH_S, Fetcher
from legion_p2p.services.checkpoint.provider_scheduler import MAX_TURNED_AWAY, PER_PROVIDER, ProviderScheduler
from legion_p2p.services.checkpoint.serve import ProvideService
from legion_p2p.services.rpc import Dispatcher
from legion_p2p.services.upload_slots import UploadSlotService
from legion_p2p.sim.network import World
from legion_p2p.sim.station import SimNetwork
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.dataset_files import DatasetBlocks
from tests.checkpoint_of import checkpointed
from tests.context_of import inline


def identity(name: str) -> Identity:
    return Identity(name.encode().ljust(32, b"."))


class Provider:
    """A peer that gives blocks of a store."""

    def __init__(self, world: World, name: str, store: BlockStore, shared: Sequence[DatasetBlocks] = ()) -> None:
        self.network: SimNetwork = world.join(identity(name))
        self.id: PeerId = self.network.peer_id
        self.archive = Archive(store, self.network.identity, shared=shared)
        self.service = ProvideService(self.archive, inline, UploadSlotService(self.network.messenger))
        self.dispatcher = Dispatcher(self.network.messenger, Events())
        self.dispatcher.on(HasBlocks, self.service.on_has_blocks)
        self.dispatcher.on(GetBlocks, self.service.on_get_blocks)
        self.network.messenger.serve(self.dispatcher.handle)
        self.n_asked = 0

    def gives(self, change: Callable[[tuple[bytes, ...]], Any]) -> None:
        """From now on it answers a request for blocks with what `change` makes of the right answer."""

        async def answer(peer: PeerId, message: GetBlocks) -> Any:
            self.n_asked += 1
            reply = await self.service.on_get_blocks(peer, message)
            assert isinstance(reply, ThrottledReply)
            reply.sent()
            changed = change(reply.reply.blocks)
            if isinstance(changed, Exception):
                raise changed
            return changed if isinstance(changed, Busy) else Blocks(changed)

        self.dispatcher.on(GetBlocks, answer)


class Directory:
    """The Discovery of a peer for which these provide everything."""

    def __init__(self, providers: list[Provider]) -> None:
        self.contacts = tuple(Contact(p.id, p.network.messenger.addresses()) for p in providers)
        self.keys: list[str] = []

    async def find(self, key: str, limit: int = 20) -> tuple[Contact, ...]:
        self.keys.append(key)
        await trio.lowlevel.checkpoint()
        return self.contacts


class Scene:
    """Some providers of one checkpoint, and a peer that fetches it."""

    def __init__(self, world: World, store: BlockStore, names: str) -> None:
        self.run, self.root = checkpointed(store)
        self.store = store
        self.providers = [Provider(world, name, store) for name in names]
        self.asker = world.join(identity("asker"))
        self.directory = Directory(self.providers)
        self.events: list[Event] = []

    @property
    def all_blocks(self) -> set[Cid]:
        return {cid for cid, _ in self.store.walk(self.root)}

    def fetcher(self, store: Any = None, **more: Any) -> Fetcher:
        events = Events()
        events.add_sink(self.events.append)
        directory: Any = self.directory
        return Fetcher(self.asker.messenger, directory, store or MemoryBlocks(), inline, events, **more)


@asynccontextmanager
async def scene(folder: Path, names: str = "ab") -> AsyncIterator[Scene]:
    with BlockStore(folder / "given") as store:
        async with World() as world:
            yield Scene(world, store, names)


# fetching


async def test_a_checkpoint_comes_whole_from_all_that_have_it(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        memory, n_bytes = MemoryBlocks(), [0]

        def progress(n: int) -> None:
            n_bytes[0] += n

        fetched = await s.fetcher(memory, progress=progress).fetch(s.root)

        assert all(memory.size_of(cid) for cid in s.all_blocks)
        assert (fetched.n_blocks, fetched.n_had, fetched.dropped) == (len(s.all_blocks), 0, ())
        assert set(fetched.from_whom) == {p.id for p in s.providers}
        assert n_bytes[0] == fetched.n_bytes == sum(fetched.from_whom.values()) == sum(len(memory.get(c)) for c in s.all_blocks)
        assert len(set(s.directory.keys)) == 2  # the root's, and the run's that it turned out to be of


async def test_what_is_there_already_is_not_fetched_again(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        memory = MemoryBlocks()
        await s.fetcher(memory).fetch(s.root)
        lost = sorted(s.all_blocks)[:3]
        memory.forget(lost)

        again = await s.fetcher(memory).fetch(s.root)

        assert (again.n_blocks, again.n_had) == (3, len(s.all_blocks) - 3)


async def test_a_provider_that_sends_other_bytes_is_reported_and_dropped(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        liar, honest = s.providers
        liar.gives(lambda blocks: tuple(b"lie" for _ in blocks))

        fetched = await s.fetcher().fetch(s.root)

        assert fetched.dropped == (liar.id,) and set(fetched.from_whom) == {honest.id}
        assert s.asker.refusals.score(liar.id) > 0.9 and s.asker.refusals.score(honest.id) == 0
        assert [event.fields["peer"] for event in s.events if event.name == "provider.dropped"] == [liar.id] * liar.n_asked


@pytest.mark.parametrize(
    "change", [lambda blocks: NetworkError("no"), lambda blocks: (*blocks, b"one more")], ids=["refuses", "sends another number"]
)
async def test_a_provider_that_fails_again_and_again_is_given_up(
    tmp_path: Path, autojump_clock: object, change: Callable[[tuple[bytes, ...]], Any]
) -> None:
    async with scene(tmp_path) as s:
        failing, other = s.providers
        failing.gives(change)

        fetched = await s.fetcher().fetch(s.root)

        assert fetched.n_blocks == len(s.all_blocks) and set(fetched.from_whom) == {other.id}
        assert failing.n_asked >= MAX_FAILURES


async def test_a_provider_that_lacks_what_it_named_is_asked_for_the_rest(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        s.providers[0].gives(lambda blocks: tuple(b"" if i % 2 else block for i, block in enumerate(blocks)))

        fetched = await s.fetcher().fetch(s.root)

        assert fetched.n_blocks == len(s.all_blocks) and fetched.dropped == ()


async def test_a_busy_provider_is_asked_again_when_it_said(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path, "a") as s:
        answers = [Busy(4000), Busy(4000)]
        s.providers[0].gives(lambda blocks: answers.pop() if answers else blocks)
        began = trio.current_time()

        fetched = await s.fetcher().fetch(s.root)

        assert fetched.n_blocks == len(s.all_blocks)
        assert trio.current_time() - began >= 2.0 and [e.name for e in s.events].count("donor.busy") == 2


async def test_what_nobody_has_is_an_error_that_names_it(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        nothing, began = Cid.of(b"nothing"), trio.current_time()

        with pytest.raises(MissingBlockError, match=str(nothing)):
            await s.fetcher().fetch(nothing)

        assert SEARCH_S <= trio.current_time() - began <= SEARCH_S + 5


async def test_blocks_can_be_looked_for_before_they_are_fetched(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:
        memory, nothing = MemoryBlocks(), Cid.of(b"nothing")
        memory.put_all([(nothing, b"here")])
        leaf, elsewhere = max(s.all_blocks), Cid.of(b"elsewhere")
        fetching = s.fetcher(memory)
        fetching.providers.update(p.id for p in s.providers)
        for contact in s.directory.contacts:
            s.asker.messenger.add_addresses(contact.peer_id, contact.addresses)

        found = await fetching.look_for([nothing, leaf, elsewhere])
        missing = await fetching.fetch_blocks([nothing, leaf, elsewhere])

        assert found == {nothing: 0, leaf: len(s.store.get(leaf)), elsewhere: None}
        assert missing == [elsewhere] and memory.get(leaf) == s.store.get(leaf)


async def test_an_answer_about_another_number_of_blocks_is_reported(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path) as s:

        async def short(peer: PeerId, message: HasBlocks) -> HeldBlocks:
            return HeldBlocks((1, 2, 3, 4, 5))

        s.providers[0].dispatcher.on(HasBlocks, short)

        fetched = await s.fetcher().fetch(s.root)

        assert set(fetched.from_whom) == {s.providers[1].id}
        assert s.asker.refusals.score(s.providers[0].id) > 0


# giving


async def test_a_provider_answers_with_sizes_and_blocks_up_to_its_limit(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, "a") as s:
        service, nothing = s.providers[0].service, Cid.of(b"nothing")
        data = s.store.get(s.root)
        monkeypatch.setattr(serve, "MAX_BLOCKS_BYTES", 2 * len(data) + 1)

        held = await service.on_has_blocks(s.asker.peer_id, HasBlocks((s.root.raw, nothing.raw)))
        asked = GetBlocks((s.root.raw, nothing.raw, s.root.raw, s.root.raw))
        given = await service.on_get_blocks(s.asker.peer_id, asked)

        assert held.sizes == (len(data), 0)
        assert isinstance(given, ThrottledReply) and given.reply.blocks == (data, b"", data, b"")
        assert (service.sent_blocks, service.sent_bytes) == (2, 2 * len(data))
        assert (await service.checkpoints(with_bytes=True)).cids == ()  # none of a run that this peer is in


async def test_what_is_no_cid_is_the_askers_mistake(tmp_path: Path, autojump_clock: object) -> None:
    async with scene(tmp_path, "a") as s:
        for message in (HasBlocks((b"c" * 36,)), GetBlocks((b"c" * 36,))):
            with pytest.raises(DecodeError):
                if isinstance(message, HasBlocks):
                    await s.providers[0].service.on_has_blocks(s.asker.peer_id, message)
                else:
                    await s.providers[0].service.on_get_blocks(s.asker.peer_id, message)


# scheduling


async def test_few_requests_go_to_one_provider_and_none_while_it_is_busy(autojump_clock: object) -> None:
    scheduler, peer = ProviderScheduler(Events(), random.Random(1)), PeerId("a")
    began = trio.current_time()
    under_way, most = 0, 0

    async def ask() -> None:
        nonlocal under_way, most
        async with scheduler.turn([peer]) as chosen:
            assert chosen == peer
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1

    assert scheduler.turned_away(peer, Busy(2000))
    async with trio.open_nursery() as nursery:
        for _ in range(2 * PER_PROVIDER):
            nursery.start_soon(ask)

    assert most == PER_PROVIDER and 1 + 2 <= trio.current_time() - began <= 3 + 2


async def test_a_provider_that_turns_away_for_ever_is_given_up_and_any_answer_clears_it() -> None:
    scheduler, peer = ProviderScheduler(Events(), random.Random(1)), PeerId("a")

    patient = [scheduler.turned_away(peer, Busy(1)) for _ in range(MAX_TURNED_AWAY)]
    assert patient == [True] * (MAX_TURNED_AWAY - 1) + [False]

    scheduler.served(peer)
    assert scheduler.turned_away(peer, Busy(1))
