"""A run on disk, as a peer that trains in it writes and reads it: a journal of updates, and checkpoints made of it.

    an update comes                     -> it is appended to the journal
    bytes come that no update led to    -> the shard is appended whole; its later updates build on that
    a shard is put whole                -> its later updates build on that base
    a checkpoint is made                -> what the journal has becomes blocks, a manifest names all, and the journal starts empty

So whatever was appended is found again: in the newest manifest, or in the journal. A shard whose stored updates do not reach its
present state (the disk was full, or too slow) is stored whole in the next checkpoint.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.core import dagcbor
from legion_p2p.core.checkpoint_policy import StoredRun
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.manifest import Base, Manifest, StoredMoments, StoredShard
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.retention import Retention, kept
from legion_p2p.core.run import SignedSpec, open_spec, run_id
from legion_p2p.core.shard_chunks import chunk_sizes, decode_chunk, encode_chunk, split
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, encode
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoint_summary import losses, losses_text
from legion_p2p.store.checkpoints import (
    base_bytes,
    get_base,
    get_manifest,
    get_moments,
    get_shards,
    get_spec,
    publish,
    put_base,
    put_chunks,
    put_node,
    put_spec,
    put_update,
    update_bytes,
)
from legion_p2p.store.dataset_files import DatasetBlocks
from legion_p2p.store.run_journal import Record, RunJournal, StateRecord, UpdateRecord, WholeRecord
from legion_p2p.store.shard_index import IndexedShard, ShardIndex

DEFAULT_KEEP = Retention(last=3)
LABEL = "kept by this peer"  # pins with this label are pruned; whatever else is pinned stays


class Archive:
    """The checkpoints of one run at one peer. Not thread-safe, except for `get` and `size_of`: one caller at a time."""

    def __init__(
        self, store: BlockStore, identity: Identity, keep: Retention = DEFAULT_KEEP, shared: Sequence[DatasetBlocks] = ()
    ) -> None:
        """`shared`: prepared data that is given to others beside the store's blocks."""
        self.store = store
        self._shared = shared
        self.identity = identity
        self.keep = keep
        self.newest: Cid | None = None
        """The newest checkpoint of the run that is open."""
        self.kept: tuple[Cid, ...] = ()
        """All of its checkpoints that are pinned, the newest first."""
        self._signed: SignedSpec | None = None
        self._run: Cid | None = None
        self._plan: ShardPlan | None = None
        self._journal: RunJournal | None = None
        self._shards = ShardIndex()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self.store.close()

    # reading

    def find(self, run: str) -> tuple[StoredRun, ...]:
        """The checkpoints of runs of this name or id, the newest first. Whether they are whole turns out when they are read."""
        found = []
        for cid in self.store.pins():
            try:
                manifest = get_manifest(self.store, cid)
                signed, spec = get_spec(self.store, manifest)
            except (StoreError, DecodeError):  # what else is pinned, or damaged
                continue
            if run in (spec.name, str(manifest.run)):
                found.append(StoredRun(cid, manifest, signed, spec))
        return tuple(sorted(found, key=lambda s: (-s.manifest.step, -s.manifest.created_s, s.cid)))

    def losses(self, run: str) -> str:
        """Which checkpoints of the run of this name or id lack blocks, and what to do, in words; empty where none does."""
        return losses_text(losses(self.store, run), str(self.store.path))

    def open(self, signed: SignedSpec, stored: StoredRun | None = None) -> None:
        """Go on from what is stored of a run; without a checkpoint of it, begin.

        Raises: StoreError; DecodeError, if the checkpoint is not whole: then try an older one.
        """
        plan = open_spec(signed).plan()
        shards = ShardIndex()
        if stored is not None:
            for state, _ in get_shards(self.store, stored.manifest, plan):
                shards.put(state.shard, state.base, state.version, state.digest, state.log)
        if self._journal is not None:
            self._journal.close()
        self._signed, self._plan = signed, plan
        self._run = put_spec(self.store, signed)
        self._shards = shards
        self.newest = None if stored is None else stored.cid
        self.kept = tuple(cid for cid, _, _ in self._pinned())
        self._journal = RunJournal(self.store.path / "journal" / run_id(signed))
        for at, record in self._opened().records():
            self._shards.take(record, at)

    def shard(self, shard: int) -> tuple[Base, bytes, Iterator[bytes], Iterator[bytes]]:
        """What a shard is made of: its base, its fp32 bytes, and the encoded updates since, in the checkpoint and after it.

        Raises: StoreError; DecodeError.
        """
        stored = self._shards[shard]
        assert self._plan is not None
        n_elements = self._plan.size(shard)
        if isinstance(stored.base, Cid):
            base = get_base(self.store, stored.base)
            return base, base_bytes(self.store, base, n_elements), *self._messages(stored)
        whole = self._opened().whole_at(stored.base)
        data = b"".join(map(decode_chunk, whole.leaves, chunk_sizes(n_elements)))
        if hashlib.sha256(data).digest() != whole.digest:
            raise DecodeError(f"{self._opened().path}: shard {shard} is not what its digest says")
        return Base(whole.version, whole.digest, whole.included, (), whole.salt), data, *self._messages(stored)

    def moments(self, cid: Cid) -> StoredMoments:
        """What the optimizer remembers, as it is named in a checkpoint's state. Raises: StoreError; DecodeError."""
        found = get_moments(self.store, cid)
        assert self._plan is not None
        if not len(found.first) == len(found.second) == self._plan.n_shards:
            raise DecodeError(f"moments of {len(found.first)} and {len(found.second)} shards, the run has {self._plan.n_shards}")
        return found

    def moment(self, shard: int, base: Cid) -> bytes:
        """The fp32 bytes of one of them, of one shard. Raises: StoreError; DecodeError."""
        assert self._plan is not None
        return base_bytes(self.store, get_base(self.store, base), self._plan.size(shard))

    def last_state(self) -> tuple[int, dict[str, Any]]:
        """The step, and what else the trainer needs to go on, as last written. Raises: StoreError; DecodeError."""
        step, state = 0, {}
        if self.newest is not None:
            manifest = get_manifest(self.store, self.newest)
            step, state = manifest.step, manifest.state
        for _, record in self._opened().records():
            if isinstance(record, StateRecord) and record.step >= step:
                step, state = record.step, dagcbor.decode(record.state)
        return step, state

    def remembered(self) -> list[tuple[str, tuple[str, ...]]]:
        """Peers, and the addresses at which they were when the run was last written; as good as that was."""
        try:
            return msgspec.json.decode(self._contacts_file().read_bytes(), type=list[tuple[str, tuple[str, ...]]])
        except (OSError, msgspec.DecodeError):
            return []

    def get(self, cid: Cid) -> bytes:
        """A block, checked. Raises: MissingBlockError; StoreError."""
        beside = next((blocks for blocks in self._shared if blocks.size_of(cid) is not None), None)
        return self.store.get(cid) if beside is None else beside.get(cid)

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes; None where it is not here."""
        found = (size for blocks in self._shared if (size := blocks.size_of(cid)) is not None)
        return next(found, None) or self.store.size_of(cid)

    @property
    def shared(self) -> tuple[Cid, ...]:
        """The data sets that are given to others."""
        return tuple(blocks.root for blocks in self._shared)

    # writing

    def put_all(self, blocks: Iterable[tuple[Cid, bytes | memoryview]]) -> None:
        """Store blocks that were fetched: nothing is removed before a checkpoint is made. Raises: DiskFullError; QuotaError;
        StoreError."""
        self.store.put_all(blocks)

    def adopt(self, state: StoredShard) -> None:
        """A shard is here as this says: all blocks of it are."""
        self._shards.put(state.shard, state.base, state.version, state.digest, state.log)

    def append(self, updates: Sequence[tuple[UpdateHeader, Update]], step: int, state: Mapping[str, Any] | None = None) -> None:
        """Write updates that lead on from what is stored, and if given the trainer's state.

        Raises: DiskFullError; StoreError. Nothing is written then, and nothing harmed.
        """
        records: list[Record] = []
        heads = self._shards.heads()
        for h, update in updates:
            if heads.get(h.shard) == (h.version - 1, h.base_digest):
                heads[h.shard] = (h.version, h.digest)
                records.append(UpdateRecord(h.shard, h.version, h.base_digest, h.digest, encode(update)))
        if state is not None:
            records.append(StateRecord(step, dagcbor.encode(dict(state))))
        self._append(records)

    def append_whole(
        self, shard: int, version: int, digest: bytes, included: Sequence[Inclusion], data: memoryview, *, salt: bytes = b""
    ) -> None:
        """Write a shard whole, as `put_base` does, but quickly; the next checkpoint makes blocks of it.

        Raises: DiskFullError; StoreError. Nothing is written then, and nothing harmed.
        """
        self._append([WholeRecord(shard, version, digest, tuple(included), tuple(map(encode_chunk, split(data))), salt)])

    @property
    def journal_bytes(self) -> int:
        """What is in the journal."""
        return 0 if self._journal is None else self._journal.size

    def remember(self, contacts: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Write down where members are, for a day on which no initial peer answers. While this peer is alone, the former stay.

        Raises: DiskFullError; StoreError.
        """
        me = self.identity.peer_id
        is_alone = all(peer == me for peer, _ in contacts)
        former = [one for one in self.remembered() if one[0] != me] if is_alone else []
        self.store.write_beside(self._contacts_file(), msgspec.json.encode([*contacts, *former]))

    def put_base(
        self, shard: int, version: int, digest: bytes, included: Sequence[Inclusion], data: memoryview, *, salt: bytes = b""
    ) -> None:
        """Store a shard whole; `data` is its little-endian fp32 bytes. Raises: DiskFullError; QuotaError; StoreError."""
        self._shards.put(shard, put_base(self.store, version, included, data, salt=salt), version, digest)

    def put_moment(self, step: int, data: memoryview) -> Cid:
        """Store one moment of a shard, for `put_moments`. The next checkpoint removes what it does not need. Raises:
        DiskFullError; QuotaError; StoreError."""
        return put_base(self.store, step, (), data)

    def put_moments(self, moments: StoredMoments) -> Cid:
        """Store what the optimizer remembers, for the state of the next checkpoint. Raises: as `put_moment`."""
        return put_node(self.store, moments)

    def recover(self) -> None:
        """After a failed write: go on from what the newest checkpoint and the journal have, and remove what neither needs.

        Raises: StoreError; DecodeError.
        """
        if self._signed is None:
            raise StoreError("no run is open in this archive")
        newest = None
        if self.newest is not None:
            manifest = get_manifest(self.store, self.newest)
            newest = StoredRun(self.newest, manifest, *get_spec(self.store, manifest))
        with self.store.hold():  # before the first checkpoint nothing else keeps the run's specification
            self.open(self._signed, newest)
            self.store.collect()

    def holds(self, shard: int, version: int, digest: bytes) -> bool:
        """Whether what is stored of a shard leads to this state."""
        return self._shards.head(shard) == (version, digest)

    def publish(self, step: int, created_s: int, state: Mapping[str, Any]) -> Cid:
        """Make a checkpoint of all shards as they are stored, prune what need not be kept, and start an empty journal.

        Raises: DiskFullError; QuotaError; StoreError. The one before stays, and so does the journal.
        """
        if self._signed is None or self._run is None:
            raise StoreError("no run is open in this archive")
        nodes = []
        for shard in range(len(self._shards)):
            stored = self._shards[shard]
            if not isinstance(stored.base, Cid):
                whole = self._opened().whole_at(stored.base)
                stored.base = put_chunks(self.store, whole.version, whole.digest, whole.included, whole.leaves, salt=whole.salt)
            while stored.pending:  # one by one: if the disk is full half-way, the rest is still in the journal
                stored.log.append(put_update(self.store, self._opened().update_at(stored.pending[0])))
                del stored.pending[0]
            log = tuple(stored.log)
            nodes.append(put_node(self.store, StoredShard(shard, stored.version, stored.digest, stored.base, log)))
        parent = "" if self.newest is None else str(self.newest)
        me = PeerId(self.identity.peer_id)
        manifest = Manifest(self._run, self._signed.signature, step, tuple(nodes), me, created_s, parent, dict(state))
        self.newest = publish(self.store, manifest, self.identity, LABEL)
        self._opened().clear()
        self._prune()
        return self.newest

    def _prune(self) -> None:
        pinned = self._pinned()
        mine = {cid: step for cid, step, label in pinned if label == LABEL}
        gone = mine.keys() - kept(mine, self.keep) - {self.newest}  # of a lower step, where one of a higher step was not whole
        for cid in gone:
            self.store.unpin(cid)
        self.kept = tuple(cid for cid, _, _ in pinned if cid not in gone)
        self.store.collect()  # all that is stored of the run is named by the manifest that was just written

    def _pinned(self) -> list[tuple[Cid, int, str]]:
        """Checkpoints of this run, the newest first: CID, step and label."""
        found = []
        for cid, label in self.store.pins().items():
            try:
                manifest = get_manifest(self.store, cid)
            except (StoreError, DecodeError):
                continue
            if manifest.run == self._run:
                found.append((cid, manifest.step, label))
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def _append(self, records: Sequence[Record]) -> None:
        places = self._opened().append(records)
        for record, at in zip(records, places, strict=True):
            self._shards.take(record, at)

    def _messages(self, stored: IndexedShard) -> tuple[Iterator[bytes], Iterator[bytes]]:
        return (
            (update_bytes(self.store, leaves) for leaves in stored.log),
            (self._opened().update_at(at) for at in stored.pending),
        )

    def _contacts_file(self) -> Path:
        return self._opened().path.with_suffix(".peers")

    def _opened(self) -> RunJournal:
        if self._journal is None:
            raise StoreError("no run is open in this archive")
        return self._journal
