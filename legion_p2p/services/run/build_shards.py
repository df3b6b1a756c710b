"""Building shards on a checkpoint: its blocks, from all peers that have them, replayed; then the updates since, from members.

blocks are missing, or lead elsewhere than the checkpoint says -> the shard is fetched whole instead
a member sends updates that do not lead on                     -> reported; what is right is kept, and the next one is asked
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import trio
from torch import Tensor, float32, frombuffer

from legion_p2p.core.chain import Chain, LogEntry
from legion_p2p.core.cids import Cid
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard_chunks import base_bytes
from legion_p2p.core.wire import Busy, GetUpdates, Update, Updates, encode
from legion_p2p.errors import DecodeError, NetworkError, StoreError
from legion_p2p.services.checkpoint.block_cache import BlockCache, MemoryBlocks
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.services.checkpoint.provider_scheduler import ProviderScheduler
from legion_p2p.services.checkpoint.replay import replay
from legion_p2p.services.checkpoint.select import Candidate
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.run.arrivals import Arrivals, FetchedShard
from legion_p2p.services.shards.states import log_bytes

UPDATES_DEADLINE_S = 120.0
GROUP_BYTES = 256 << 20  # of shards that are built from blocks at a time: what is fetched and not built yet takes memory


class ShardBuilder:
    """Builds the shards of one peer that joins."""

    def __init__(
        self, ctx: PeerContext, fetcher: Fetcher, store: BlockCache, turns: ProviderScheduler, arrivals: Arrivals
    ) -> None:
        """`store`: where `fetcher` puts blocks. `turns`: which peer is asked next, whatever it is asked for."""
        self._ctx = ctx
        self._rpc = Rpc(ctx.messenger)
        self._fetcher = fetcher
        self._store = store
        self._turns = turns
        self._arrivals = arrivals

    async def build_all(self, candidates: Mapping[int, Candidate], otherwise: Callable[[int], None]) -> None:
        """Each shard on its candidate; `otherwise` is called with those that cannot be built."""
        for group in groups(candidates, self._ctx.plan.size):
            leaves = [leaf for shard in group for leaf in candidates[shard].leaves]
            try:
                missing = set(await self._fetcher.fetch_blocks(dict.fromkeys(leaves)))
            except StoreError as failed:
                self._ctx.events.error("join.no_store", f"blocks cannot be kept, so shards are fetched whole: {failed}")
                missing = set(leaves)
            async with trio.open_nursery() as nursery:
                for shard in group:
                    nursery.start_soon(self._build, candidates[shard], missing, otherwise)
            if isinstance(self._store, MemoryBlocks):
                self._store.forget(leaves)
        self._arrivals.donors.update(self._fetcher.from_whom)

    async def _build(self, candidate: Candidate, missing: set[Cid], otherwise: Callable[[int], None]) -> None:
        shard = candidate.state.shard
        try:
            if not missing.isdisjoint(candidate.leaves):
                raise DecodeError("no peer is left that has all blocks of it")
            reference, chain = await self._ctx.disk(self._replayed, candidate)
        except (DecodeError, StoreError) as bad:
            self._ctx.events.emit("shard.not_built", shard=shard, version=candidate.state.version, reason=str(bad))
            otherwise(shard)
            return
        reference, since = await self._catch_up(candidate, reference, chain)
        chain.owner = chain.owner or candidate.judges[0]
        self._arrivals.add(FetchedShard(shard, reference, chain, candidate.state, tuple(since)))
        self._ctx.events.emit(
            "shard.built", shard=shard, base=candidate.base.version, stored=candidate.state.version, version=chain.version
        )

    def _replayed(self, candidate: Candidate) -> tuple[Tensor, Chain]:
        """Raises: DecodeError, if the blocks do not lead to where the checkpoint says; StoreError."""
        state, base, get = candidate.state, candidate.base, self._store.get
        reference = frombuffer(bytearray(base_bytes(get, base, self._ctx.plan.size(state.shard))), dtype=float32)
        chain = Chain(base.version, base.digest, log_bytes(reference.numel()), base.included, salt=base.salt)
        messages = (b"".join(map(get, leaves)) for leaves in state.log)
        for entry, after in replay(self._ctx.run, self._ctx.spec, state.shard, base.version, reference, messages):
            chain.applied(entry.header, entry.update)
            reference = after
        if (chain.version, chain.digest) != (state.version, state.digest):
            raise DecodeError(f"its blocks lead to version {chain.version} {chain.digest.hex()[:16]}, which is not what it says")
        return reference, chain

    async def _catch_up(self, candidate: Candidate, reference: Tensor, chain: Chain) -> tuple[Tensor, list[LogEntry]]:
        """The updates since the checkpoint, put on the chain: from the first of its judges that has all of them."""
        shard = candidate.state.shard
        since: list[LogEntry] = []
        for judge in candidate.judges:
            question = GetUpdates(self._ctx.run, shard, chain.version, chain.digest, log_only=True)
            try:
                async with self._turns.turn([judge]):
                    reply = await self._rpc.ask(judge, question, Priority.DOWNLOAD, within_s=UPDATES_DEADLINE_S)
            except NetworkError:
                continue
            if isinstance(reply, Busy):
                self._turns.turned_away(judge, reply)
            elif isinstance(reply, Updates) and reply.at_version is not None:
                reference, entries, wrong = await self._ctx.offload(self._advanced, shard, chain, reference, reply.updates)
                since += entries
                if wrong is None:
                    self._arrivals.donors.add(judge)
                    break
                self._ctx.messenger.report(judge, f"bad updates of shard {shard}: {wrong}")
        return reference, since

    def _advanced(
        self, shard: int, chain: Chain, reference: Tensor, updates: Sequence[Update]
    ) -> tuple[Tensor, list[LogEntry], DecodeError | None]:
        """As far as the updates lead on from `chain`, which they are put on; and what is wrong with the next one."""
        entries = []
        try:
            for entry, after in replay(self._ctx.run, self._ctx.spec, shard, chain.version, reference, map(encode, updates)):
                chain.applied(entry.header, entry.update)
                entries.append(entry)
                reference = after
        except DecodeError as bad:
            return reference, entries, bad
        return reference, entries, None


def groups(candidates: Mapping[int, Candidate], size: Callable[[int], int]) -> Iterator[list[int]]:
    """The shards in groups of at most GROUP_BYTES, or one."""
    group: list[int] = []
    for shard in sorted(candidates):
        if group and 4 * sum(map(size, [*group, shard])) > GROUP_BYTES:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group
