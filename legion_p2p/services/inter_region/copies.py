"""The copies of a shard that are synced with other regions: the owner's, a relay's estimate of that, or the center variable.

Nothing here waits. A caller that moves a copy holds its lock.
"""

import statistics
from typing import Protocol

import torch
from torch import Tensor

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.wire import RelayRequest
from legion_p2p.services.shards.replica import Replica
from legion_p2p.tensor.sync_step import norm, reach

LEFT_OVER = 0.25  # of a step, that may wait for the next one; a dense codec leaves less, a sparse one takes some messages
MAX_WISHES = 64  # regions of which the center remembers how far they last wished to move it


class Copy(Protocol):
    """One side of a sync."""

    lock: QuickLock

    @property
    def version(self) -> int: ...

    @property
    def is_ours(self) -> bool:
        """This peer still represents it."""

    def value(self) -> Tensor: ...

    def subtract(self, step: Tensor) -> None: ...


class RegionCopy:
    """This region's copy of a shard, at its owner: the reference less what is on its way."""

    def __init__(self, replica: Replica) -> None:
        self.lock = replica.lock
        self._replica = replica

    @property
    def version(self) -> int:
        return self._replica.chain.version

    @property
    def is_ours(self) -> bool:
        return self._replica.round is not None

    def value(self) -> Tensor:
        residual = self._replica.owner_residual
        return self._replica.reference if residual is None else self._replica.reference - residual

    def subtract(self, step: Tensor) -> None:
        residual = self._replica.owner_residual
        self._replica.owner_residual = step if residual is None else residual + step


class RelayEstimate:
    """The same copy at a relay, which has the reference, but not the owner's residual.

    What the copy moved by is first with the relay (`undelivered`), then on its way with the owner (`delivered`), then in the
    reference: an element has arrived there once the owner has published a change of it. Without counting what is on its way,
    a sparse codec would keep the relay pulling at differences that are settled.
    """

    def __init__(self, replica: Replica) -> None:
        self.lock = QuickLock()
        self.undelivered = torch.zeros_like(replica.reference)
        self.in_delivery: tuple[RelayRequest, Tensor] | None = None
        """A message that the owner may or may not have, and what it decodes to."""
        self.tried: int | None = None
        """The version at which it was last sent."""
        self.is_delivering = False
        self.is_due = False
        """Enough is undelivered to be worth a message."""
        self._stepped = 0.0
        self._delivered = torch.zeros_like(replica.reference)
        self._seen = replica.reference
        self._replica = replica

    @property
    def version(self) -> int:
        return self._replica.chain.version

    @property
    def is_ours(self) -> bool:
        return True

    def value(self) -> Tensor:
        reference = self._replica.reference
        if reference is not self._seen:
            self._delivered = torch.where(reference == self._seen, self._delivered, 0.0)
            self._seen = reference
        return reference - self._delivered - self.undelivered

    def subtract(self, step: Tensor) -> None:
        self.undelivered = self.undelivered + step
        self._stepped, self.is_due = norm(self.undelivered), True

    def delivered(self) -> None:
        """The owner has what was in delivery."""
        assert self.in_delivery is not None
        sent = self.in_delivery[1]
        self.in_delivery = None
        self.value()
        self.undelivered, self._delivered = self.undelivered - sent, self._delivered + sent
        self.is_due = norm(self.undelivered) > LEFT_OVER * self._stepped


class CenterCopy:
    """The center variable of a shard, at the peer that owns it across all regions."""

    def __init__(self, start: Tensor) -> None:
        self.lock = QuickLock()
        self.version = 0
        self.is_ours = True
        self.synced_at = 0
        """The version of the shard in its owner's region at the last sync with the center."""
        self._value = start
        self._wishes: BoundedMap[str, float] = BoundedMap(MAX_WISHES)

    def value(self) -> Tensor:
        return self._value

    def subtract(self, step: Tensor) -> None:
        self._value = self._value - step
        self.version += 1

    def reach(self, region: str, theirs: Tensor, rate: float, cap: float) -> float | None:
        """The longest step that this region may make it take: by what the others wish, as pushes are capped."""
        self._wishes[region] = rate * norm(self._value - theirs)
        return reach(self._value, statistics.median_low(self._wishes.values()), cap, "center")
