"""What both sides of a sync between regions use: asking, in requester.py, and answering, in responder.py."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from legion_p2p.core.wire import SyncRequest
from legion_p2p.observe.events import Events
from legion_p2p.services.inter_region.copies import Copy
from legion_p2p.services.inter_region.pairs import PairState, PairStates
from legion_p2p.services.inter_region.sync_schedule import Schedule
from legion_p2p.services.inter_region.synced import SyncedShard, SyncedShards
from legion_p2p.tensor.sync_step import ElasticStep

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SyncParts:
    """Of one peer."""

    shards: SyncedShards
    pairs: PairStates
    schedule: Schedule
    events: Events
    rng: Random
    copy_of: Callable[[int], Copy | None]
    """The copy of a shard that this peer represents in its region; None: it represents none."""

    def number(self) -> int:
        """A new number for a request: one that comes twice counts once."""
        return self.rng.getrandbits(62)

    async def compute(self, replica: SyncedShard, fn: Callable[..., T], *args: object) -> T:
        """`fn(*args)`, which takes as long as the shard is large."""
        result: T = await self.shards.compute(replica.numel, fn, *args)
        return result

    def note(self, pair: PairState, other: str, moved: ElasticStep, version: int, message: SyncRequest, replied: int) -> None:
        """A sync with region `other` is done at this side. `replied`: bytes of the reply."""
        pair.known, pair.digest = moved.known, moved.digest
        if pair.guard.synced(moved.distance):
            pair.forget()
            self.events.emit("sync.apart", shard=message.shard, region=other, distance=moved.distance)
        if moved.slowed_to is not None:
            self.events.emit("sync.slowed", shard=message.shard, region=other, rate=moved.slowed_to, distance=moved.distance)
        self.events.emit(
            "sync.done",
            shard=message.shard,
            version=version,
            region=other,
            distance=round(moved.distance, 6),
            rate=round(message.rate if moved.slowed_to is None else moved.slowed_to, 4),
            codec=message.codec,
            whole=not message.known,
            n_bytes=len(message.payload) + replied,
        )
