"""The block store: blocks by content id, on disk.

    STORE            the first line says what this folder is
    lock             held by the one process that may write
    blocks/x/<cid>   a block; x is the last but one character of its name
    pins/<cid>       a root that must stay, with all that it links to; the file's text says why
    corrupt/<cid>    a block whose bytes do not fit its name
    drafts/          blocks being written
    journal/<run>    what came since the newest checkpoint (store/journal.py)

A block is written as a draft, synced, and renamed: under its name there is all of it or nothing, whenever the process or the
machine stops. It is hashed again whenever it is read. One process writes; any number read meanwhile.
"""

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from legion_p2p.core.cids import RAW, Cid
from legion_p2p.core.links import needed_by, walk
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.errors import DecodeError, MissingBlockError, QuotaError, StoreError
from legion_p2p.files.paths import user_path
from legion_p2p.files.writing import sync_folder
from legion_p2p.store.folder import StoreFolder, raise_as_store_error
from legion_p2p.store.pins import Pins

WRITERS = 16  # threads that wait for the disk together: it syncs 8 files in the time of one

Report = Callable[[Cid, Path], None]


def _ignore(_cid: Cid, _moved_to: Path) -> None:
    pass


class BlockStore:
    """A folder of blocks. Use as a context manager, or call `close`. May be used from several threads."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        quota_bytes: int | None = None,
        read_only: bool = False,
        on_corrupt: Report = _ignore,
    ) -> None:
        """Open the store, made on first use unless `read_only`.

        `quota_bytes`: of all blocks together; None: no limit. `on_corrupt`: told of each block that was moved aside.

        Raises: StoreError, if it is no store, in use by another process, or cannot be read or made.
        """
        self.path = user_path(path)
        self.quota_bytes = quota_bytes
        self.read_only = read_only
        self._on_corrupt = on_corrupt
        self._mutex = threading.RLock()
        self._held: set[Cid] = set()
        self._n_holds = 0
        self._used_bytes = 0
        self._reserved_bytes = 0
        self._folder = StoreFolder(self.path)
        self._pins = Pins(self._folder)
        try:
            if not read_only:
                self._folder.make()
            self._folder.check()
            if not read_only:
                self._folder.remove_drafts()
                self._used_bytes = self._count()
        except OSError as failed:
            self.close()
            raise_as_store_error(failed, self.path)
        except StoreError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write. What was put is on disk already."""
        self._folder.close()

    # blocks

    @property
    def used_bytes(self) -> int:
        """Of all blocks. A reader counts them again each time."""
        return self._count() if self.read_only else self._used_bytes

    def put(self, data: bytes | memoryview, codec: str = RAW) -> Cid:
        """Store a block; on disk when this returns. Raises: QuotaError; DiskFullError; StoreError."""
        cid = Cid.of(data, codec)
        self.put_all([(cid, data)])
        return cid

    def put_all(self, blocks: Iterable[tuple[Cid, bytes | memoryview]]) -> None:
        """Store blocks whose names are known to be theirs; all on disk when this returns. When it raises, those that came before
        the failed one, and perhaps some of the next WRITERS, are. Several times as fast as `put` for each.

        Raises: QuotaError; DiskFullError; StoreError.
        """
        self._must_write()
        waiting = iter(blocks)
        some = list(itertools.islice(waiting, WRITERS))
        folders: set[Path] = set()
        try:
            with ThreadPoolExecutor(WRITERS, thread_name_prefix="blocks") if len(some) > 1 else contextlib.nullcontext() as pool:
                each = map if pool is None else pool.map
                try:
                    while some:
                        list(each(lambda block: self._write(block[0], block[1], folders), some))
                        some = list(itertools.islice(waiting, WRITERS))
                finally:
                    list(each(sync_folder, folders))
        except OSError as failed:
            raise_as_store_error(failed, self.path)

    def get(self, cid: Cid) -> bytes:
        """The bytes of a block, checked. Raises: MissingBlockError, if there is none, or not whole; StoreError."""
        where = self._path_of(cid)
        try:
            with open(where, "rb") as file:
                data = file.read(MAX_BLOCK_BYTES + 1)
        except FileNotFoundError:
            raise MissingBlockError(str(cid), f"it is not in {self.path}") from None
        except OSError as failed:
            if failed.errno == errno.EIO:
                self._set_aside(cid)
                raise MissingBlockError(str(cid), f"the disk cannot read {where}") from failed
            raise_as_store_error(failed, where)
        if not cid.names(data):
            self._set_aside(cid)
            raise MissingBlockError(str(cid), f"its bytes in {self.path} were damaged")
        return data

    def __contains__(self, cid: Cid) -> bool:
        """Whether it is there; its bytes are looked at only by `get`."""
        return self._path_of(cid).exists()

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes, unread; None where it is not there."""
        try:
            return self._path_of(cid).stat().st_size
        except FileNotFoundError:
            return None

    def __iter__(self) -> Iterator[Cid]:
        """The names of all blocks, in no order."""
        for folder in sorted((self.path / "blocks").glob("?")):
            for entry in os.scandir(folder):
                with contextlib.suppress(DecodeError):  # what somebody else has put there is not ours
                    yield Cid.parse(entry.name)

    # what belongs together

    def walk(self, root: Cid, on_missing: Callable[[MissingBlockError], None] | None = None) -> Iterator[tuple[Cid, bytes]]:
        """`root` and all that it links to, each block once, a node before what it links to; every one checked.

        Raises: MissingBlockError, unless `on_missing` takes it; DecodeError, if a node is none or there are too many blocks.
        """
        yield from walk(self.get, root, on_missing)

    def pin(self, root: Cid, label: str = "") -> None:
        """Keep `root` and all that it links to, whether it is here already or not. `label` says why, to people."""
        self._must_write()
        self._pins.put(root, label)

    def unpin(self, root: Cid) -> None:
        """Let the next collection have it, unless something else keeps it."""
        self._must_write()
        self._pins.remove(root)

    def pins(self) -> dict[Cid, str]:
        """Every pinned root, and its label."""
        return self._pins.all()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Within it, nothing that is put, by whichever thread, is garbage: until the root that links to it is pinned."""
        with self._mutex:
            self._n_holds += 1
        try:
            yield
        finally:
            with self._mutex:
                self._n_holds -= 1
                if not self._n_holds:
                    self._held.clear()

    def collect(self) -> tuple[int, int]:
        """Remove what no pin needs and nobody holds. Returns how many blocks that were, and their bytes.

        A pinned node that is not here yet keeps nothing: what it links to is fetched after it. One that was damaged could keep
        anything, so nothing is removed as long as it is.

        Raises: StoreError, naming that block, or if the store is open for reading only.
        """
        self._must_write()
        with self._mutex:
            needed = needed_by(self.get, [*self.pins(), *self._held], self._must_be_absent, skips_broken=True)
            n_removed = freed_bytes = 0
            for cid in self:
                if cid not in needed:
                    size = self.size_of(cid) or 0
                    self._path_of(cid).unlink(missing_ok=True)
                    self._used_bytes -= size
                    n_removed, freed_bytes = n_removed + 1, freed_bytes + size
        return n_removed, freed_bytes

    def _must_be_absent(self, cid: Cid) -> None:
        """Raises: StoreError, where the block is not missing, but damaged."""
        if (self.path / "corrupt" / str(cid)).exists():
            told = f"nothing was removed from {self.path}: block {cid} is damaged, and what it needs is unknown"
            raise StoreError(f"{told}; fetch it again, or unpin what needs it") from None

    def write_beside(self, where: Path, data: bytes) -> None:
        """Write a file of the store that is no block, whole or not at all. Raises: DiskFullError; StoreError."""
        self._must_write()
        try:
            os.replace(self._folder.draft(data), where)
        except OSError as failed:
            raise_as_store_error(failed, where)

    # files

    def _path_of(self, cid: Cid) -> Path:
        name = str(cid)
        return self.path / "blocks" / name[-2] / name

    def _write(self, cid: Cid, data: bytes | memoryview, folders: set[Path]) -> None:
        size = len(data)
        if size > MAX_BLOCK_BYTES:
            raise StoreError(f"a block of {size} bytes, at most {MAX_BLOCK_BYTES}")
        where = self._path_of(cid)
        with self._mutex:  # from here on a collection that runs meanwhile lets it be
            if self._n_holds:
                self._held.add(cid)
            if self._holds(where, data):
                folders.add(where.parent)
                return
            self._reserve(size)
        reserved = size
        try:
            if not where.parent.exists():
                where.parent.mkdir(exist_ok=True)
                folders.add(where.parent.parent)
            draft = self._folder.draft(data)
            with self._mutex:  # another thread may have written the same
                before = self.size_of(cid) or 0
                os.replace(draft, where)
                self._used_bytes += size - before
                self._reserved_bytes -= reserved  # together: counted twice, it would refuse what another thread stores
                reserved = 0
            folders.add(where.parent)
            (self.path / "corrupt" / where.name).unlink(missing_ok=True)
        finally:
            with self._mutex:
                self._reserved_bytes -= reserved

    def _holds(self, where: Path, data: bytes | memoryview) -> bool:
        """Whether it is there already, and whole: what is acknowledged must not be a block that was damaged before."""
        try:
            with open(where, "rb") as file:
                return file.read(len(data) + 1) == data
        except OSError:
            return False

    def _reserve(self, size: int) -> None:
        together = self._used_bytes + self._reserved_bytes
        if self.quota_bytes is not None and together + size > self.quota_bytes:
            raise QuotaError(
                f"the store {self.path} holds {together} bytes, and {size} more would exceed its quota of "
                f"{self.quota_bytes}: remove checkpoints that are no longer needed, or raise the quota"
            )
        self._reserved_bytes += size

    def _must_write(self) -> None:
        if self.read_only:
            raise StoreError(f"the store {self.path} is open for reading only")

    def _set_aside(self, cid: Cid) -> None:
        where = self._path_of(cid)
        if not self.read_only:
            moved_to = self.path / "corrupt" / where.name
            with contextlib.suppress(OSError), self._mutex:
                size = where.stat().st_size
                os.replace(where, moved_to)
                self._used_bytes -= size
                where = moved_to
        self._on_corrupt(cid, where)

    def _count(self) -> int:
        return sum(entry.stat().st_size for folder in (self.path / "blocks").glob("?") for entry in os.scandir(folder))
