"""Fetching a run's model as a peer that joins: each shard from a checkpoint and the updates since, or whole from members.

    a shard that is better built on a checkpoint -> build_shards.py; which these are: services/checkpoint/select.py
    any other shard, or one that cannot be built -> fetch_shards.py

A peer with a store keeps the blocks there: stopped while joining, it goes on with what it has.
"""

from functools import partial

from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.announcement import unpack_marks
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import StoreError
from legion_p2p.services.checkpoint.block_cache import BlockCache, MemoryBlocks
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.services.checkpoint.provider_scheduler import ProviderScheduler
from legion_p2p.services.checkpoint.select import Candidate, CheckpointSelection
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.arrivals import Arrivals, FetchedShard
from legion_p2p.services.run.build_shards import ShardBuilder
from legion_p2p.services.run.fetch_shards import ShardFetcher

WORTH_SELECTING_BYTES = 1 << 20  # of a whole model: below, asking for checkpoints takes longer than fetching it


class StateSync:
    """One peer's way to the model of a run."""

    def __init__(self, ctx: PeerContext, members: MemberService, region: str, store: BlockCache | None = None) -> None:
        """`region`: that of this peer. `store`: where blocks are kept; without one, in memory while they are needed."""
        self._ctx = ctx
        self._members = members
        self._arrivals = Arrivals()
        blocks: BlockCache = store or MemoryBlocks()
        turns = ProviderScheduler(ctx.events, ctx.rng)
        fetcher = Fetcher(ctx.messenger, ctx.discovery, blocks, ctx.disk, ctx.events, self._arrivals.note_bytes, turns)
        self._selection = CheckpointSelection(ctx, members, region, fetcher, blocks)
        self._builder = ShardBuilder(ctx, fetcher, blocks, turns, self._arrivals)
        self._fetcher = ShardFetcher(ctx, members, region, turns, self._arrivals)

    @property
    def donors(self) -> set[PeerId]:
        """The peers that sent something of the model."""
        return self._arrivals.donors

    async def fetch(self, start: Tensor | None = None) -> list[FetchedShard]:
        """Every shard. `start`, 1-D fp32, are parameters that the run may have started from: what is at them does not travel.

        Raises: JoinError, if no member can send a shard.
        """
        candidates = await self._select()
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._builder.build_all, candidates, partial(nursery.start_soon, self._fetcher.fetch, start))
            for shard in range(self._ctx.plan.n_shards):
                if shard not in candidates:
                    nursery.start_soon(self._fetcher.fetch, start, shard)
        return [self._arrivals.shards[shard] for shard in range(self._ctx.plan.n_shards)]

    async def _select(self) -> dict[int, Candidate]:
        """The shards that are better built on a checkpoint, and on which."""
        said = [m.announcement for m in self._members.table.counted()]
        is_new = not any(a.version or any(mark.version for mark in unpack_marks(a.marks)) for a in said)
        if 4 * self._ctx.plan.numel < WORTH_SELECTING_BYTES or is_new:
            return {}
        try:
            return await self._selection.weigh()
        except StoreError as failed:
            self._ctx.events.error("join.no_store", f"blocks cannot be kept, so every shard is fetched whole: {failed}")
            return {}
