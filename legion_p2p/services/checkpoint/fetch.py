"""Fetching a checkpoint by its CID, from all peers that have blocks of it.

    providers of the root, and of its run once that is known   -> asked which blocks they have
    each is asked for what few others have, several at a time  -> every block is checked against its CID
    it sends other bytes                                       -> reported, and asked for nothing more
    it sends nothing, or fails                                 -> others are asked
    it is busy                                                 -> others are asked, and it again when it says

Blocks that are in the store already are not fetched, so a fetch that was stopped goes on where it was. Nodes come before the
blocks that they link to.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec
import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.download import Download
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import block_key, checkpoint_key, decode_manifest, links_of
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import MAX_HAS_CIDS, Busy, GetBlocks, HasBlocks
from legion_p2p.errors import DecodeError, MissingBlockError, NetworkError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.block_cache import BlockCache
from legion_p2p.services.checkpoint.provider_scheduler import PER_PROVIDER, ProviderScheduler
from legion_p2p.services.ports import Discovery, Messenger, Offload
from legion_p2p.services.rpc import Rpc

BATCH = 8  # blocks in a request: 2 MiB of leaves, so that a slow provider holds up little
REQUEST_DEADLINE_S = 60.0
ASK_DEADLINE_S = 10.0
MAX_FAILURES = 3  # of one provider, one after the other
SEARCH_S = 20.0  # for a peer that has what is missing; records of a manifest made a moment ago take seconds to show
SEARCH_EVERY_S = 2.0
MAX_FETCHED_BLOCKS = 1 << 20  # below one root: as many as a store walks through


class Fetched(msgspec.Struct, frozen=True):
    """What came of a fetch."""

    n_blocks: int
    n_bytes: int
    n_had: int
    """Blocks that were here already."""
    from_whom: dict[PeerId, int]
    """Bytes by provider."""
    dropped: tuple[PeerId, ...]
    """Providers that sent other bytes than they were asked for."""


class Fetcher:
    """Fetches one checkpoint into a store."""

    def __init__(
        self,
        messenger: Messenger,
        discovery: Discovery,
        store: BlockCache,
        offload: Offload,
        events: Events,
        progress: Callable[[int], None] = lambda n_bytes: None,
        scheduler: ProviderScheduler | None = None,
    ) -> None:
        """`scheduler`: where the same peers are asked for other things as well."""
        self.sizes: dict[Cid, int] = {}
        """Bytes of the blocks that were found or fetched, as the peers that have them say."""
        self.providers: set[PeerId] = set()
        """Peers to ask, beside those that are connected and that the DHT names."""
        self._scheduler = scheduler or ProviderScheduler(events, Random())
        self._messenger = messenger
        self._rpc = Rpc(messenger)
        self._discovery = discovery
        self._store = store
        self._offload = offload
        self._events = events
        self._progress = progress
        self._keys: list[str] = []
        self._liars: set[PeerId] = set()
        self.from_whom: dict[PeerId, int] = {}
        """Bytes fetched, by provider."""
        self._n_blocks = self._n_had = 0

    async def fetch(self, root: Cid, check: Callable[[bytes], None] = lambda data: None) -> Fetched:
        """All blocks below `root`, level by level. `check` is given the root as soon as it is here, and may raise to end it.

        Raises: MissingBlockError, if nobody has one; DecodeError; StoreError.
        """
        self._keys = [block_key(root)]
        seen, level = {root}, [root]
        while level:
            await self._fetch_all(level)
            nodes = [cid for cid in level if cid.codec == DAG_CBOR]
            below: dict[Cid, None] = {}
            for cid in nodes:
                data = await self._offload(self._store.get, cid)
                if cid == root:
                    check(data)
                    self._note_run(data)
                below.update(dict.fromkeys(link for link in links_of(data) if link not in seen))
            seen.update(below)
            if len(seen) > MAX_FETCHED_BLOCKS:
                raise DecodeError(f"more than {MAX_FETCHED_BLOCKS} blocks below {root}")
            level = list(below)
        dropped = tuple(sorted(self._liars))
        return Fetched(self._n_blocks, sum(self.from_whom.values()), self._n_had, dict(self.from_whom), dropped)

    def _note_run(self, data: bytes) -> None:
        """Others have published manifests of their own, with the same blocks below."""
        with contextlib.suppress(DecodeError):  # it may be a node of a checkpoint, not a whole one
            self._keys.append(checkpoint_key(str(decode_manifest(data).run)))

    async def _fetch_all(self, cids: list[Cid]) -> None:
        missing = await self._not_here(cids)
        self._n_had += len(cids) - len(missing)
        deadline = trio.current_time() + SEARCH_S
        while missing:
            before = len(missing)
            missing = await self._fetch_some(missing)
            if len(missing) < before:
                deadline = trio.current_time() + SEARCH_S
            elif trio.current_time() >= deadline:
                others = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
                raise MissingBlockError(str(missing[0]), f"no peer that can be reached has it{others}")
            else:
                await trio.sleep(SEARCH_EVERY_S)

    async def fetch_blocks(self, cids: Iterable[Cid]) -> list[Cid]:
        """Fetch these, as far as any peer has them; what is missing afterwards. Raises: StoreError."""
        missing = await self._not_here(list(cids))
        while missing:
            before = len(missing)
            missing = await self._fetch_some(missing)
            if len(missing) == before:
                break
        return missing

    async def look_for(self, cids: Iterable[Cid]) -> dict[Cid, int | None]:
        """How many bytes each block takes to fetch, as its providers say: 0 where it is here; None where nobody has it."""
        found: dict[Cid, int | None] = dict.fromkeys(cids, 0)
        download = Download(await self._not_here(list(found)))
        await self._ask_around(download)
        found.update(dict.fromkeys(download.missing()))
        found.update((cid, self.sizes[cid]) for cid in download.missing() - download.unobtainable())
        return found

    async def _not_here(self, cids: list[Cid]) -> list[Cid]:
        sizes = await self._offload(_sizes, self._store, cids)
        return [cid for cid, size in zip(cids, sizes, strict=True) if size is None]

    async def _fetch_some(self, wanted: list[Cid]) -> list[Cid]:
        """Fetch what the peers have that can be reached now; what is missing then."""
        download = Download(wanted)
        await self._ask_around(download)
        if len(download.unobtainable()) < len(wanted):
            await self._download(download)
        return sorted(download.missing())

    async def _ask_around(self, download: Download) -> None:
        """Find out which peer has which block."""
        providers = self.providers | self._messenger.connected()
        for key in self._keys:
            with trio.move_on_after(ASK_DEADLINE_S):
                for contact in await self._discovery.find(key):
                    self._messenger.add_addresses(contact.peer_id, contact.addresses)
                    providers.add(contact.peer_id)
        wanted = sorted(download.missing())

        async def ask(peer: PeerId) -> None:
            for at in range(0, len(wanted), MAX_HAS_CIDS):
                some = wanted[at : at + MAX_HAS_CIDS]
                question = HasBlocks(tuple(cid.raw for cid in some))
                try:
                    reply = await self._rpc.ask(peer, question, within_s=ASK_DEADLINE_S)
                    with self._rpc.checking(peer, "bad answer about blocks"):
                        _check_count(reply.sizes, some)
                except NetworkError:
                    return  # a bootstrap node, a peer without a store, or one that is gone
                held = {cid: size for cid, size in zip(some, reply.sizes, strict=True) if size}
                self.sizes |= held
                download.offers(peer, held)

        async with trio.open_nursery() as nursery:
            for peer in sorted(providers - self._liars):
                nursery.start_soon(ask, peer)

    async def _download(self, download: Download) -> None:
        """As much as the providers known now give."""
        changed = Notify()
        n_busy = 0

        async def drain(peer: PeerId) -> None:
            nonlocal n_busy
            failures = 0
            while not download.done and failures < MAX_FAILURES and peer not in self._liars:
                async with self._scheduler.turn([peer]):
                    batch = download.next_batch(peer, BATCH)
                    if batch:
                        n_busy += 1
                        try:
                            failures = 0 if await self._fetch_batch(download, peer, batch) else failures + 1
                        finally:
                            n_busy -= 1
                            changed.notify()
                if download.done:
                    nursery.cancel_scope.cancel()  # those that wait until a busy one has room
                elif not batch:
                    if not n_busy:
                        return
                    await changed.wait()  # another peer may fail with what this one has
            if failures >= MAX_FAILURES:
                download.drop(peer)

        async with trio.open_nursery() as nursery:
            for peer in download.providers():
                for _ in range(PER_PROVIDER):
                    nursery.start_soon(drain, peer)

    async def _fetch_batch(self, download: Download, peer: PeerId, batch: tuple[Cid, ...]) -> bool:
        """Whether it brought anything, or may do so later."""
        question = GetBlocks(tuple(cid.raw for cid in batch))
        try:
            reply = await self._rpc.ask(peer, question, Priority.DOWNLOAD, within_s=REQUEST_DEADLINE_S)
            if isinstance(reply, Busy):
                download.release(peer, batch)
                return self._scheduler.turned_away(peer, reply)
            with self._rpc.checking(peer, "bad answer about blocks"):
                _check_count(reply.blocks, batch)
        except NetworkError:
            self._scheduler.served(peer)
            download.release(peer, batch)
            return False
        self._scheduler.served(peer)
        got = [(cid, data) for cid, data in zip(batch, reply.blocks, strict=True) if data]
        right = await self._offload(_right_ones, got)
        if len(right) < len(got):
            self._messenger.report(peer, "sent blocks that are not what their CIDs say")
            self._events.error("provider.dropped", f"{peer} sent other bytes than it was asked for", peer=peer)
            self._liars.add(peer)
        await self._offload(self._store.put_all, right)
        for cid, data in right:
            download.arrived(cid)
            self._n_blocks += 1
            self.from_whom[peer] = self.from_whom.get(peer, 0) + len(data)
            self._progress(len(data))
        if peer in self._liars:
            download.drop(peer)
        elif len(got) < len(batch):
            sent = {cid for cid, _ in got}
            download.lacks(peer, (cid for cid in batch if cid not in sent))
        return bool(right)


def _check_count(answers: Sequence[object], asked: Sequence[Cid]) -> None:
    if len(answers) != len(asked):
        raise DecodeError(f"{len(answers)} answers about {len(asked)} blocks")


def _sizes(store: BlockCache, cids: list[Cid]) -> list[int | None]:
    return [store.size_of(cid) for cid in cids]


def _right_ones(blocks: list[tuple[Cid, bytes]]) -> list[tuple[Cid, bytes]]:
    return [(cid, data) for cid, data in blocks if cid.names(data)]
