"""A bucket: a block store's files in a place that many can read, such as object storage or a folder on a share.

    STORE, blocks/x/<cid>, pins/<cid>      as in store/blocks.py; nothing else of a store is written

Whoever may write to a bucket may put anything there. So nothing in it is believed: each block is compared with its CID, and has
at most MAX_BLOCK_BYTES; names of files that are no CIDs are passed over, so none leads out of its folder; and a pull takes at
most as many bytes as the caller says. What a bucket lacks can come from peers, because they have the same blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.links import MAX_DAG_BLOCKS
from legion_p2p.core.manifest import MAX_BLOCK_BYTES, Manifest, decode_manifest, links_of
from legion_p2p.errors import DecodeError, MissingBlockError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.folder import HEADER
from legion_p2p.store.remote_files import RemoteFiles, in_parallel, open_files

MAX_ROOTS = 1000  # that are looked at for the newest: each is a request
MAX_BATCH_BYTES = 32 << 20  # in memory at a time, in either direction, and in one commit of a hub
BATCH = 128  # blocks that are written together
TOGETHER = 32  # blocks that are read together: MAX_BATCH_BYTES

Progress = Callable[[int], None]


@dataclass(frozen=True)
class PushedBlocks:
    """What a push has written."""

    n_blocks: int
    n_bytes: int
    n_had: int
    """Blocks that were in the bucket before."""


@dataclass(frozen=True)
class PulledBlocks:
    """What a pull has brought."""

    n_blocks: int
    n_bytes: int
    n_had: int
    """Blocks that were in the store before."""
    missing: tuple[str, ...]
    """CIDs of blocks that the bucket lacks; what they link to is not known."""
    damaged: tuple[str, ...]
    """CIDs of blocks of which the bucket has other bytes."""


class Bucket:
    """The blocks below a URL, or in files that are given."""

    def __init__(self, url: str, files: RemoteFiles | None = None) -> None:
        """Raises: UsageError; StoreError."""
        self.name = shown(url)
        self._files = files or open_files(url)

    def check(self) -> bool:
        """Whether there is a block store. Raises: StoreError, if it is one of another version."""
        seen = self._files.read("STORE", len(HEADER))
        if seen is not None and seen != HEADER.encode():
            told = seen.decode("ascii", "replace").strip()[:60]
            raise StoreError(f"{self.name}/STORE says {told!r}, this version of legion_p2p knows {HEADER.strip()!r}")
        return seen is not None

    def roots(self) -> list[Cid]:
        """The checkpoints that were pushed, in no order. Raises: StoreError, if they are more than MAX_ROOTS."""
        found = [cid for name in self._files.sizes("pins") if (cid := _cid_or_none(name)) is not None and cid.codec == DAG_CBOR]
        if len(found) > MAX_ROOTS:
            raise StoreError(f"{self.name} has {len(found)} checkpoints, at most {MAX_ROOTS} are looked at: give the CID of one")
        return found

    def newest(self, run: str = "") -> tuple[Cid, Manifest] | None:
        """The checkpoint with the most steps, of the run of this id, or of the only run; None where there is none.

        Raises: StoreError, if the bucket has several runs.
        """
        found = [(cid, manifest) for cid in self.roots() if (manifest := self._manifest(cid)) is not None]
        runs = sorted({str(manifest.run) for _, manifest in found})
        if not run and len(runs) > 1:
            raise StoreError(f"{self.name} has checkpoints of {len(runs)} runs: give the CID of one, or --run with one of {runs}")
        of_run = [one for one in found if run in ("", str(one[1].run))]
        return max(of_run, key=lambda one: (one[1].step, one[1].created_s, one[0]), default=None)

    def get(self, cid: Cid) -> bytes:
        """A block. Raises: MissingBlockError; DecodeError, if the bytes are not those that its CID names; StoreError."""
        data = self._files.read(_path_of(cid), MAX_BLOCK_BYTES)
        if data is None:
            raise MissingBlockError(str(cid), f"it is not in {self.name}")
        if len(data) > MAX_BLOCK_BYTES or not cid.names(data):
            raise DecodeError(f"{self.name} has other bytes under {cid} than it names")
        return data

    def push(self, store: BlockStore, root: Cid, label: str, progress: Progress = lambda _: None) -> PushedBlocks:
        """Write what the bucket lacks of a checkpoint that is whole here; its root is named last.

        Raises: MissingBlockError; DecodeError; StoreError. What was written then stays, and is not written again.
        """
        here = {cid: size for cid, size in self._files_by_cid("blocks").items() if size}
        if not self.check():
            self._files.write({"STORE": HEADER.encode()})
        waiting: dict[str, bytes] = {}
        n_blocks = n_bytes = n_had = 0
        for cid, data in store.walk(root):
            progress(len(data))
            if here.get(cid) == len(data):  # a write that was cut short is shorter
                n_had += 1
                continue
            waiting[_path_of(cid)] = data
            n_blocks, n_bytes = n_blocks + 1, n_bytes + len(data)
            if len(waiting) >= BATCH or sum(map(len, waiting.values())) >= MAX_BATCH_BYTES:
                self._files.write(waiting)
                waiting = {}
        self._files.write(waiting | {f"pins/{root}": label.encode()})
        return PushedBlocks(n_blocks, n_bytes, n_had)

    def pull(self, store: BlockStore, root: Cid, max_bytes: int, progress: Progress = lambda _: None) -> PulledBlocks:
        """Fetch what the store lacks of a checkpoint. Call it within `store.hold()`, or with `root` pinned.

        Raises: StoreError, if it is more than `max_bytes`; DecodeError, if `root` is no checkpoint. What was fetched stays.
        """
        n_blocks = n_bytes = n_had = 0
        missing: list[str] = []
        damaged: list[str] = []

        def fetched(cid: Cid) -> bytes | None:
            try:
                return self.get(cid)
            except MissingBlockError:
                missing.append(str(cid))
            except DecodeError:
                damaged.append(str(cid))
            return None

        seen, waiting = {root}, [root]
        while waiting:
            some, waiting = waiting[-TOGETHER:], waiting[:-TOGETHER]
            here = {cid: _node_in(store, cid) for cid in some if cid in store}
            lacking = [cid for cid in some if here.get(cid) is None]
            new = {cid: data for cid, data in zip(lacking, in_parallel(fetched, lacking), strict=True) if data is not None}
            n_had += len(some) - len(lacking)
            n_blocks, n_bytes = n_blocks + len(new), n_bytes + sum(map(len, new.values()))
            if n_bytes > max_bytes:
                raise StoreError(f"{self.name}: checkpoint {root} is more than {max_bytes} bytes, the most that were asked for")
            if root in new:
                decode_manifest(new[root])
            store.put_all(new.items())
            progress(sum(map(len, new.values())))
            for cid in some:
                data = new.get(cid) or here.get(cid)
                if cid.codec == DAG_CBOR and data:
                    fresh = [link for link in links_of(data) if link not in seen]
                    seen.update(fresh)
                    waiting.extend(fresh)
            if len(seen) > MAX_DAG_BLOCKS:
                raise DecodeError(f"more than {MAX_DAG_BLOCKS} blocks below {root}")
        return PulledBlocks(n_blocks, n_bytes, n_had, tuple(missing), tuple(damaged))

    def _manifest(self, cid: Cid) -> Manifest | None:
        """None where it is missing, damaged, or no manifest that its publisher signed."""
        try:
            return decode_manifest(self.get(cid))
        except (MissingBlockError, DecodeError):
            return None

    def _files_by_cid(self, folder: str) -> dict[Cid, int]:
        named = ((_cid_or_none(name), size) for name, size in self._files.sizes(folder).items())
        return {cid: size for cid, size in named if cid is not None}


def _node_in(store: BlockStore, cid: Cid) -> bytes | None:
    """A node that is in the store, for its links; of a leaf nothing is read. None: it was damaged."""
    try:
        return store.get(cid) if cid.codec == DAG_CBOR else b""
    except MissingBlockError:
        return None


def _path_of(cid: Cid) -> str:
    name = str(cid)
    return f"blocks/{name[-2]}/{name}"


def _cid_or_none(name: str) -> Cid | None:
    try:
        return Cid.parse(name)
    except DecodeError:
        return None
