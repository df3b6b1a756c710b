"""Fetching a run's model as a newcomer: each shard from a checkpoint and the updates since, or whole from those who hold it.

    a shard that is better built on a checkpoint -> its blocks, from all who have them; replayed; then the updates since
    blocks are missing, or lead elsewhere        -> as any other shard
    any other shard                              -> from the member that has least to send us, several shards at once
    whoever is asked is busy                     -> others are asked, and that one again when it says

A newcomer with a store keeps the blocks there: stopped while joining, it goes on with what it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio
from torch import Tensor, float32, frombuffer

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.announcement import unpack_marks
from legion_p2p.core.chain import Chain, Entry
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import StoredShard
from legion_p2p.core.placement import Placement
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard_chunks import base_bytes
from legion_p2p.core.wire import (
    Busy,
    GetShard,
    GetUpdates,
    Inclusion,
    ShardState,
    Update,
    Updates,
    encode,
)
from legion_p2p.errors import DecodeError, JoinError, NetworkError, RemoteProtocolError, StoreError
from legion_p2p.services.checkpoint.fetch import Fetcher, Memory, Store
from legion_p2p.services.checkpoint.providers import ProviderScheduler
from legion_p2p.services.checkpoint.replay import replay
from legion_p2p.services.checkpoint.select import Candidate, CheckpointSelection
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import Archive
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.shards.states import log_bytes
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest

ASK_DEADLINE_S = 5.0
FETCH_S = 120.0  # to find somebody who has a shard; while bytes come in it may take longer
FETCH_DEADLINE_S = 120.0
BUSY_PATIENCE_S = 600.0  # while all who have what is missing are busy with others, and nothing at all comes in
MAX_CONCURRENT_FETCHES = 8
WORTH_WEIGHING_BYTES = 1 << 20  # of a whole model: below, asking for checkpoints takes longer than fetching it
GROUP_BYTES = 256 << 20  # of shards that are built from blocks at a time: what is fetched and not built yet takes memory


@dataclass(frozen=True, eq=False)
class FetchedShard:
    """A shard as it came in."""

    shard: int
    reference: Tensor
    """1-D fp32."""
    chain: Chain
    stored: StoredShard | None = None
    """Where it was built on a checkpoint: the state whose blocks are in the store."""
    since: tuple[Entry, ...] = ()
    """The updates after that."""


class StateSync:
    """One peer's way to the model of a run."""

    def __init__(self, ctx: PeerContext, members: MemberService, region: str, store: Store | None = None) -> None:
        """`region`: that of this peer. `store`: where blocks are kept; without one, in memory while they are needed."""
        self.donors: set[PeerId] = set()
        """Who sent something of the model."""
        self._run = ctx.run
        self._spec = ctx.spec
        self._plan = ctx.plan
        self._placement = Placement(ctx.run, self._plan.n_shards, ctx.spec.round.placement)
        self._region = region
        self._members = members
        self._messenger = ctx.messenger
        self._rpc = Rpc(ctx.messenger)
        self._offload = ctx.offload
        self._disk = ctx.disk
        self._events = ctx.events
        self._store: Store = store or Memory()
        self._turns = ProviderScheduler(ctx.events, ctx.rng)
        self._fetcher = Fetcher(ctx.messenger, ctx.discovery, self._store, ctx.disk, ctx.events, self._note_progress, self._turns)
        self._selection = CheckpointSelection(ctx, members, region, self._fetcher, self._store)
        self._limiter = trio.CapacityLimiter(MAX_CONCURRENT_FETCHES)
        self._fetched: dict[int, FetchedShard] = {}
        self._came_at = trio.current_time()

    async def fetch(self, start: Tensor | None = None) -> list[FetchedShard]:
        """Every shard. `start`, 1-D fp32, are parameters that the run may have started from: what is at them does not travel.

        Raises: JoinError, if nobody has a shard for FETCH_S.
        """
        offers = await self._weigh()
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._build_all, offers, partial(nursery.start_soon, self._fetch_whole, start))
            for shard in range(self._plan.n_shards):
                if shard not in offers:
                    nursery.start_soon(self._fetch_whole, start, shard)
        return [self._fetched[shard] for shard in range(self._plan.n_shards)]

    def _note_progress(self, n_bytes: int) -> None:
        self._came_at = trio.current_time()

    # from checkpoints

    async def _weigh(self) -> dict[int, Candidate]:
        n_elements = sum(self._plan.size(shard) for shard in range(self._plan.n_shards))
        marks = [mark for m in self._members.table.counted() for mark in unpack_marks(m.announcement.marks)]
        if 4 * n_elements < WORTH_WEIGHING_BYTES or not any(mark.version for mark in marks):
            return {}
        try:
            return await self._selection.weigh()
        except StoreError as failed:
            self._events.error("join.no_store", f"blocks cannot be kept, so every shard is fetched whole: {failed}")
            return {}

    async def _build_all(self, offers: dict[int, Candidate], otherwise: Callable[[int], None]) -> None:
        for group in _groups(offers, self._plan.size):
            leaves = [leaf for shard in group for leaf in offers[shard].leaves]
            try:
                missing = set(await self._fetcher.fetch_blocks(dict.fromkeys(leaves)))
            except StoreError as failed:
                self._events.error("join.no_store", f"blocks cannot be kept, so shards are fetched whole: {failed}")
                missing = set(leaves)
            async with trio.open_nursery() as nursery:
                for shard in group:
                    nursery.start_soon(self._build, offers[shard], missing, otherwise)
            if isinstance(self._store, Memory):
                self._store.forget(leaves)
        self.donors.update(self._fetcher.from_whom)

    async def _build(self, offer: Candidate, missing: set[Cid], otherwise: Callable[[int], None]) -> None:
        """A shard from its blocks, and the updates since; or `otherwise`."""
        shard = offer.state.shard
        try:
            if not missing.isdisjoint(offer.leaves):
                raise DecodeError("nobody is left who has all blocks of it")
            reference, chain = await self._disk(self._replayed, offer)
        except (DecodeError, StoreError) as bad:
            self._events.emit("shard.not_built", shard=shard, version=offer.state.version, reason=str(bad))
            otherwise(shard)
            return
        since: list[Entry] = []
        for judge in offer.judges:
            question = GetUpdates(self._run, shard, chain.version, chain.digest, log_only=True)
            try:
                async with self._turns.turn([judge]):
                    reply = await self._rpc.ask(judge, question, Priority.DOWNLOAD, within_s=FETCH_DEADLINE_S)
            except NetworkError:
                continue
            if isinstance(reply, Busy):
                self._turns.turned_away(judge, reply)
            elif isinstance(reply, Updates) and reply.at_version is not None:
                reference, entries, wrong = await self._offload(self._advanced, shard, chain, reference, reply.updates)
                since += entries
                if wrong is None:
                    self.donors.add(judge)
                    break
                self._messenger.report(judge, f"bad updates of shard {shard}: {wrong}")
        chain.owner = chain.owner or offer.judges[0]
        self._fetched[shard] = FetchedShard(shard, reference, chain, offer.state, tuple(since))
        self._events.emit("shard.built", shard=shard, base=offer.base.version, stored=offer.state.version, version=chain.version)

    def _replayed(self, offer: Candidate) -> tuple[Tensor, Chain]:
        """Raises: DecodeError, if the blocks do not lead to where the checkpoint says; StoreError."""
        state, base, get = offer.state, offer.base, self._store.get
        reference = frombuffer(bytearray(base_bytes(get, base, self._plan.size(state.shard))), dtype=float32)
        chain = Chain(base.version, base.digest, log_bytes(reference.numel()), base.included)
        messages = (b"".join(map(get, leaves)) for leaves in state.log)
        for entry, after in replay(self._run, self._spec, state.shard, base.version, reference, messages):
            chain.applied(entry.header, entry.update)
            reference = after
        if (chain.version, chain.digest) != (state.version, state.digest):
            raise DecodeError(f"its blocks lead to version {chain.version} {chain.digest.hex()[:16]}, which is not what it says")
        return reference, chain

    def _advanced(
        self, shard: int, chain: Chain, reference: Tensor, updates: Sequence[Update]
    ) -> tuple[Tensor, list[Entry], DecodeError | None]:
        """As far as the updates lead on from `chain`, which they are put on; and what is wrong with the next one."""
        entries = []
        try:
            for entry, after in replay(self._run, self._spec, shard, chain.version, reference, map(encode, updates)):
                chain.applied(entry.header, entry.update)
                entries.append(entry)
                reference = after
        except DecodeError as bad:
            return reference, entries, bad
        return reference, entries, None

    # from members

    async def _fetch_whole(self, start: Tensor | None, shard: int) -> None:
        guess = None
        if start is not None:
            first, end = self._plan.bounds(shard)
            guess = start[first:end].clone()
        deadline = trio.current_time() + FETCH_S
        failed: set[PeerId] = set()
        while shard not in self._fetched:
            holders = self._holders(shard)
            untried = [peer for peer in holders if peer not in failed]
            if untried:
                async with self._limiter, self._turns.turn(untried) as peer:
                    at_start = None if guess is None else await self._at_start(shard, guess, peer)
                    got = at_start or await self._ask_for_shard(shard, peer)
                if isinstance(got, FetchedShard):
                    self._fetched[shard] = got
                    self._note_progress(4 * self._plan.size(shard))
                elif got is None or not self._turns.turned_away(peer, got):
                    failed.add(peer)
                elif trio.current_time() - self._came_at > BUSY_PATIENCE_S:
                    raise JoinError(f"shard {shard} of run {self._spec.name!r}: all who have it are busy with others; try later")
                continue
            if trio.current_time() >= deadline:
                raise JoinError(f"shard {shard} of run {self._spec.name!r}: none of {len(holders)} members could send it")
            failed.clear()
            with trio.move_on_after(1.0):
                await self._members.changed.wait()

    def _holders(self, shard: int) -> list[PeerId]:
        """Who holds a shard: its owner first, its standby, then the rest."""
        ready = [m.announcement for m in self._members.table.counted() if m.announcement.ready]
        weights = {PeerId(a.peer_id): a.weight for a in ready if a.region == self._region and a.weight > 0}
        owners = self._placement.owners(self._region, weights)[shard]
        first = [peer for peer in (owners.owner, owners.standby) if peer is not None]
        return [*first, *(PeerId(a.peer_id) for a in ready if a.peer_id not in first)]

    async def _at_start(self, shard: int, guess: Tensor, peer: PeerId) -> FetchedShard | None:
        """The shard, if `peer` has it at version 0 and that is what we guess."""
        start_digest = await self._offload(digest, guess)
        question = GetUpdates(self._run, shard, 0, start_digest, log_only=True)
        try:
            reply = await self._rpc.ask(peer, question, within_s=ASK_DEADLINE_S)
        except NetworkError:
            return None
        if isinstance(reply, Updates) and reply.at_version == 0 and not reply.updates:
            return self._whole(shard, guess, 0, start_digest, (), peer)
        return None

    async def _ask_for_shard(self, shard: int, peer: PeerId) -> FetchedShard | Busy | None:
        try:
            reply = await self._rpc.ask(peer, GetShard(self._run, shard), Priority.DOWNLOAD, within_s=FETCH_DEADLINE_S)
            if isinstance(reply, Busy):
                return reply
            with self._rpc.checking(peer, "bad shard"):
                reference = await self._read(shard, reply)
        except RemoteProtocolError as bad:
            self._events.error("shard.fetch_refused", f"shard {shard}: {bad.reason}", peer=peer)
            return None
        except NetworkError as failed:
            self._events.emit("shard.fetch_failed", shard=shard, peer=peer, reason=str(failed))
            return None
        self._turns.served(peer)
        self._events.emit("shard.fetched", shard=shard, version=reply.version, peer=peer)
        return self._whole(shard, reference, reply.version, reply.digest, reply.included, peer)

    async def _read(self, shard: int, state: ShardState) -> Tensor:
        """The shard that came. Raises: DecodeError, if it is not what was asked for, or not what it says."""
        if state.shard != shard:
            raise DecodeError(f"asked for shard {shard}, got {state.shard}")
        reference: Tensor = await self._offload(codec.get("fp32").decode, state.payload, self._plan.size(shard))
        if await self._offload(digest, reference) != state.digest:
            raise DecodeError(f"shard {shard} version {state.version} does not have its digest")
        return reference

    def _whole(
        self, shard: int, reference: Tensor, version: int, digest_: bytes, included: Sequence[Inclusion], peer: PeerId
    ) -> FetchedShard:
        self.donors.add(peer)
        return FetchedShard(shard, reference, Chain(version, digest_, log_bytes(reference.numel()), included, peer))


def _groups(offers: Mapping[int, Candidate], size: Callable[[int], int]) -> Iterator[list[int]]:
    """The shards of the offers, in groups of at most GROUP_BYTES, or one."""
    group: list[int] = []
    for shard in sorted(offers):
        if group and 4 * sum(map(size, [*group, shard])) > GROUP_BYTES:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def keep(archive: Archive, fetched: Sequence[FetchedShard], step: int) -> None:
    """Let an open archive go on from what was fetched into it. Raises: StoreError."""
    for one in fetched:
        if one.stored is not None:
            archive.adopt(one.stored)
    archive.append([(entry.header, entry.update) for one in fetched for entry in one.since], step)
