"""How far each shard of a run is stored: in blocks, and in the journal since the newest checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import MAX_LOG
from legion_p2p.store.run_journal import Record, UpdateRecord, WholeRecord


@dataclass
class IndexedShard:
    """A shard as far as it is stored: a base, the updates since that are blocks, and those that are in the journal only."""

    base: Cid | int
    """A block, or a place in the journal."""
    version: int
    digest: bytes
    log: list[tuple[Cid, ...]] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    """Places in the journal."""


class ShardIndex:
    """The shards of one run, by number."""

    def __init__(self) -> None:
        self._shards: dict[int, IndexedShard] = {}

    def __getitem__(self, shard: int) -> IndexedShard:
        return self._shards[shard]

    def __len__(self) -> int:
        return len(self._shards)

    def put(self, shard: int, base: Cid | int, version: int, digest: bytes, log: Iterable[tuple[Cid, ...]] = ()) -> None:
        """From now on the shard is stored like this."""
        self._shards[shard] = IndexedShard(base, version, digest, list(log))

    def take(self, record: Record, at: int) -> None:
        """A record that is in the journal, at this place, counts from now on."""
        if isinstance(record, WholeRecord):
            self.put(record.shard, at, record.version, record.digest)
        elif isinstance(record, UpdateRecord):
            self._chain(record, at)

    def _chain(self, record: UpdateRecord, at: int) -> None:
        stored = self._shards.get(record.shard)
        if (
            stored is not None
            and (record.version, record.base_digest) == (stored.version + 1, stored.digest)
            and len(stored.log) + len(stored.pending) < MAX_LOG
        ):
            stored.pending.append(at)
            stored.version, stored.digest = record.version, record.digest

    def head(self, shard: int) -> tuple[int, bytes] | None:
        """Version and digest of one; None, where nothing of it is stored."""
        stored = self._shards.get(shard)
        return None if stored is None else (stored.version, stored.digest)

    def heads(self) -> dict[int, tuple[int, bytes]]:
        """Version and digest of each shard."""
        return {shard: (stored.version, stored.digest) for shard, stored in self._shards.items()}
