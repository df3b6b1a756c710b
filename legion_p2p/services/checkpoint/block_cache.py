"""Where the blocks of a fetched checkpoint go: a peer's store, or memory."""

from collections.abc import Iterable
from typing import Protocol

from legion_p2p.core.cids import Cid
from legion_p2p.errors import MissingBlockError


class BlockCache(Protocol):
    """Where fetched blocks go. Every call may wait for the disk."""

    def get(self, cid: Cid) -> bytes: ...

    def size_of(self, cid: Cid) -> int | None: ...

    def put_all(self, blocks: Iterable[tuple[Cid, bytes | memoryview]]) -> None: ...


class MemoryBlocks:
    """A store for a peer without a disk to spare."""

    def __init__(self) -> None:
        self._blocks: dict[Cid, bytes] = {}

    def get(self, cid: Cid) -> bytes:
        """Raises: MissingBlockError."""
        try:
            return self._blocks[cid]
        except KeyError:
            raise MissingBlockError(str(cid), "it was not fetched") from None

    def size_of(self, cid: Cid) -> int | None:
        data = self._blocks.get(cid)
        return None if data is None else len(data)

    def put_all(self, blocks: Iterable[tuple[Cid, bytes | memoryview]]) -> None:
        self._blocks.update((cid, bytes(data)) for cid, data in blocks)

    def forget(self, cids: Iterable[Cid]) -> None:
        for cid in cids:
            self._blocks.pop(cid, None)
