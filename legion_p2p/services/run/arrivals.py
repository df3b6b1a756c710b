"""What has come in of a run's model while a peer joins."""

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from torch import Tensor

from legion_p2p.core.chain import Chain, LogEntry
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import StoredShard
from legion_p2p.services.ports import CheckpointArchive


@dataclass(frozen=True, eq=False)
class FetchedShard:
    """A shard as it came in."""

    shard: int
    reference: Tensor
    """1-D fp32."""
    chain: Chain
    stored: StoredShard | None = None
    """Where it was built on a checkpoint: the state whose blocks are in the store."""
    since: tuple[LogEntry, ...] = ()
    """The updates after that."""


class Arrivals:
    """The shards that are here, the peers that they came from, and when bytes last came in."""

    def __init__(self) -> None:
        self.shards: dict[int, FetchedShard] = {}
        self.donors: set[PeerId] = set()
        self._came_at = trio.current_time()

    def add(self, fetched: FetchedShard) -> None:
        self.shards[fetched.shard] = fetched

    def note_bytes(self, n_bytes: int) -> None:
        """This many bytes came in, of any kind."""
        self._came_at = trio.current_time()

    def quiet_s(self) -> float:
        """For how long nothing has come in."""
        return trio.current_time() - self._came_at


def keep(archive: CheckpointArchive, fetched: Sequence[FetchedShard], step: int) -> None:
    """Let an open archive go on from what was fetched into it. Raises: StoreError."""
    for one in fetched:
        if one.stored is not None:
            archive.adopt(one.stored)
    archive.append([(entry.header, entry.update) for one in fetched for entry in one.since], step)
