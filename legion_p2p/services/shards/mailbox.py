"""What passes from the network's thread to the training thread, which never waits for it.

The training thread drains it at the start of a step; of several versions of a shard it sees the newest only.
"""

import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import msgspec

from legion_p2p.errors import describe_failure

if TYPE_CHECKING:
    from torch import Tensor

    from legion_p2p.tensor.compact import Shelved

NON_FINITE = "local parameters are not finite"
"""Why a contribution failed: the training that made it had diverged."""


class Delivery(msgspec.Struct, frozen=True):
    """News of one shard. `reference` None: the bytes are those that were handed in, only the version is new."""

    shard: int
    version: int
    reference: "Tensor | Shelved | None"


class Settled(msgspec.Struct, frozen=True):
    """What became of a contribution: included in an update, or failed for a reason."""

    shard: int
    failure: str | None = None


class Mailbox:
    """Thread-safe; the network's side posts and settles, the training side drains and waits."""

    def __init__(self, on_news: Callable[[], None] = lambda: None) -> None:
        """`on_news` is called after each post and settlement, for a training side that is no thread."""
        self._on_news = on_news
        self._changed = threading.Condition()
        self._deliveries: dict[int, Delivery] = {}
        self._settled: list[Settled] = []
        self._closed: str | None = None
        self._cause: BaseException | None = None

    def post(self, shard: int, version: int, reference: "Tensor | Shelved | None") -> None:
        with self._changed:
            waiting = self._deliveries.get(shard)
            if reference is None and waiting is not None:  # an undrained reference stays, under the newer version
                reference = waiting.reference
            self._deliveries[shard] = Delivery(shard, version, reference)
            self._changed.notify_all()
        self._on_news()

    def settle(self, shard: int, failure: str | None = None) -> None:
        """The shard may be contributed to again."""
        with self._changed:
            self._settled.append(Settled(shard, failure))
            self._changed.notify_all()
        self._on_news()

    def close(self, reason: str, cause: BaseException | None = None) -> None:
        """Nothing more will come; the training side, which may wait, learns why. The first close with a cause counts."""
        with self._changed:
            if self._cause is None:
                self._closed, self._cause = reason, cause
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Something in the network's thread has failed, and ends it: a thread that waits is told what."""
        self.close(f"this peer failed: {describe_failure(failure)}", failure)

    @property
    def closed(self) -> str | None:
        return self._closed

    @property
    def cause(self) -> BaseException | None:
        """The failure that closed it; None where the peer left because it was asked to."""
        return self._cause

    def drain(self) -> tuple[Collection[Delivery], Collection[Settled]]:
        """All that has come, oldest shard first."""
        if not self._deliveries and not self._settled:  # spares the lock on nearly every step
            return (), ()
        with self._changed:
            deliveries, self._deliveries = self._deliveries, {}
            settled, self._settled = self._settled, []
        return [deliveries[shard] for shard in sorted(deliveries)], settled

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to drain, or it is closed, or the time is over."""
        with self._changed:
            if not self._deliveries and not self._settled and self._closed is None:
                self._changed.wait(timeout_s)
