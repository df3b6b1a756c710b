"""The blocks of a store, for anybody who knows their content ids: only while the peer is in a run that anybody may join.

IPFS clients prove nothing of who they are, so a private run's blocks are not given to them; members fetch them from each other
over this project's own protocol, which asks what admits them.
"""

from typing import Protocol

from legion_p2p.core.cids import Cid
from legion_p2p.errors import MissingBlockError


class StoredBlocks(Protocol):
    def get(self, cid: Cid) -> bytes: ...

    def size_of(self, cid: Cid) -> int | None: ...


class PublicBlocks:
    """`blocks`, or nothing."""

    def __init__(self, blocks: StoredBlocks) -> None:
        self._blocks = blocks
        self.is_open = False
        """Whether the run that this peer is in is open to anybody."""

    def get(self, cid: Cid) -> bytes:
        """Raises: StoreError, if it is not there, or not for everybody."""
        if not self.is_open:
            raise MissingBlockError(str(cid), "it is not for everybody")
        return self._blocks.get(cid)

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes; None, if it is not there, or not for everybody."""
        return self._blocks.size_of(cid) if self.is_open else None
