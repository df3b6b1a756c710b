"""What a sync between regions asks of the model that is synced: shards that every member has, or units of a sharded run.

A shard here is what has one owner in each region, by number. Code of this package that is typed by these protocols syncs both.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.eligible import Eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import announced_version
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Request
from legion_p2p.services.rpc import R
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor.codec import Codec

T = TypeVar("T")


class SyncedShard(Protocol):
    """One shard, as this peer holds it."""

    @property
    def shard(self) -> int: ...

    @property
    def numel(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def is_owned(self) -> bool:
        """This peer is its owner now."""

    @property
    def notify(self) -> Notify:
        """Wakes others that wait for a change of the shard."""


class SyncedShards(Protocol):
    """All shards of a run at one peer."""

    @property
    def run(self) -> str: ...

    @property
    def me(self) -> PeerId: ...

    @property
    def region(self) -> str: ...

    @property
    def n_shards(self) -> int: ...

    @property
    def numel(self) -> int:
        """Of all shards together."""

    @property
    def rounds(self) -> RoundSpec:
        """How and how often regions sync; `sync_every` counts versions of a shard."""

    def replica(self, shard: int) -> SyncedShard:
        """Raises: DecodeError, if there is no such shard; NetworkError, if it is not held here."""

    def reference(self, shard: int) -> Tensor:
        """What this peer holds of it. Raises: as `replica`."""

    def owner_here(self, shard: int) -> PeerId | None:
        """The member of this region that should own it, by the members known now."""

    def owner_there(self, region: str, shard: int, members: Eligible) -> PeerId | None:
        """The owner in another region, among these members of it."""

    def version_at(self, announced: Announcement, shard: int) -> int | None:
        """The version that a member announces; None: none."""

    def codec_of(self, shard: int, name: str) -> Codec:
        """The codec of that name as it is used on the shard. Raises: CodecError."""

    async def compute(self, n_elements: int, fn: Callable[..., T], *args: object) -> T:
        """The result of `fn(*args)`, which is arithmetic on this many elements."""

    async def ask_owner(self, peer: PeerId, request: Request[R]) -> R:
        """Ask another owner, as one of few transfers at a time. Raises: NetworkError."""


class SyncedReplicas:
    """Shards of a run in which every member has the whole model."""

    def __init__(self, shards: ShardService) -> None:
        self._shards = shards
        self.run = shards.run
        self.me = shards.me
        self.n_shards = shards.plan.n_shards
        self.numel = shards.plan.numel
        self.rounds = shards.spec.round

    @property
    def region(self) -> str:
        return self._shards.region

    def replica(self, shard: int) -> Replica:
        return self._shards.replica(shard)

    def reference(self, shard: int) -> Tensor:
        return self._shards.replica(shard).reference

    def owner_here(self, shard: int) -> PeerId | None:
        return self._shards.ownership(shard).owner

    def owner_there(self, region: str, shard: int, members: Eligible) -> PeerId | None:
        return self._shards.placement.owners(region, members.weights, members.reserve)[shard].owner

    def version_at(self, announced: Announcement, shard: int) -> int | None:
        return announced_version(announced, shard)

    def codec_of(self, shard: int, name: str) -> Codec:
        return self._shards.codec_of(self._shards.replica(shard), name)

    async def compute(self, n_elements: int, fn: Callable[..., T], *args: object) -> T:
        return await self._shards.compute(n_elements, fn, *args)

    async def ask_owner(self, peer: PeerId, request: Request[R]) -> R:
        return await self._shards.ask_owner(peer, request)
