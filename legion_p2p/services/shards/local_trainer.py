"""The training side's books: what it has taken in, what it has handed in, and which shards are still on their way.

Used by the optimizer in the training thread, and by simulated peers.

When a shard is pushed: `local_steps` steps after its last push; and where that push waited long for others to arrive, not much
earlier than `local_steps` after the version that it waited for. So members that began at different moments come to push together,
without any message about it. Where answers take longer than `local_steps`, a push waits after the answer for two thirds of the
steps that the answer took: otherwise most of what it brings would have been trained without what the others pushed
(docs/records/learning.md). Shards begin staggered over the steps of a round, which makes the traffic even (Streaming DiLoCo,
2501.18512). A member that comes into a run under way hands in every shard within its first round, the first one after one step:
the others' rounds close at any moment meanwhile, and a push that waits for one shows when the next begins.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from legion_p2p.services.shards.mailbox import NON_FINITE, Delivery, Settled
from legion_p2p.services.shards.replica import LocalChange
from legion_p2p.tensor.local import LocalCopy

MAX_WAIT_ROUNDS, MAX_WAIT_STEPS = 4, 16  # whichever is more: an answer that an outage delayed says nothing of the next
WELL_AGAIN = 3  # contributions accepted in a row; one may be of a moment in which the parameters had just been taken back
LEAD = 4  # a push may come this fraction of a round earlier than a whole round after the last version


class News(Protocol):
    """Where news come from: a `Mailbox`, as the training side sees it."""

    def drain(self) -> tuple[Collection[Delivery], Collection[Settled]]: ...


class LocalTrainer:
    """Between a model that is being trained and the mailbox. Not thread-safe: it belongs to the training side."""

    def __init__(self, local: LocalCopy, mailbox: News, *, streaming: bool = False, came_late: bool = False) -> None:
        """`came_late`: others have trained the run before this member came."""
        self.local = local
        self.mailbox = mailbox
        self.streaming = streaming
        self.steps = 0
        self.tokens = 0
        self.last_failure: str | None = None
        """Why the last contribution that failed did."""
        n_shards = len(local.bounds)
        self._busy: set[int] = set()
        self._handed_in = [(0, 0)] * n_shards
        # Steps and tokens at each shard's last hand-in: a busy shard's change goes on growing.
        self._pushed_at = [0] * n_shards
        self._settled_at = [0] * n_shards
        self._local_steps = 0
        self._came_late = came_late
        self._refusals = [0] * n_shards
        self._accepted = [0] * n_shards

    @property
    def busy(self) -> bool:
        """Contributions are on their way that no update contains yet."""
        return bool(self._busy)

    @property
    def all_handed_in(self) -> bool:
        return all(self.steps == steps for steps, _ in self._handed_in)

    @property
    def refusals(self) -> int:
        """How often contributions to one shard were refused because training had diverged there, since it last went well."""
        return max(self._refusals)

    @property
    def moved_unseen(self) -> bool:
        """The parameters differ from what was handed in or taken in last, and no step was counted since."""
        unseen = (s for s, (steps, _) in enumerate(self._handed_in) if steps == self.steps and s not in self._busy)
        return any(self.local.differs(shard) for shard in unseen)

    def stepped(self, tokens: int) -> None:
        """One local step was made."""
        self.steps += 1
        self.tokens += tokens

    def take_in(self) -> bool:
        """Take in what has come: new versions into the model, news of contributions into the books. True if the model moved."""
        deliveries, settled = self.mailbox.drain()
        for delivery in deliveries:
            self.local.take(delivery.shard, delivery.version, delivery.reference)
        for news in settled:
            self._busy.discard(news.shard)
            self._settled_at[news.shard] = self.steps
            self._note_outcome(news)
            if news.failure is not None:
                self.last_failure = news.failure
        return any(delivery.reference is not None for delivery in deliveries)

    def _note_outcome(self, news: Settled) -> None:
        if news.failure == NON_FINITE:
            self._refusals[news.shard] += 1
            self._accepted[news.shard] = 0
        elif news.failure is None:
            self._accepted[news.shard] += 1
            if self._accepted[news.shard] >= WELL_AGAIN:
                self._refusals[news.shard] = 0

    def due(self, local_steps: int) -> list[int]:
        """The shards to hand in now, at `local_steps` a round."""
        if local_steps != self._local_steps:
            self._stagger(local_steps)
        lead = local_steps // LEAD
        longest = max(MAX_WAIT_ROUNDS * local_steps, MAX_WAIT_STEPS)
        return [
            shard
            for shard, (pushed_at, settled_at) in enumerate(zip(self._pushed_at, self._settled_at, strict=True))
            if shard not in self._busy
            and self.steps - max(pushed_at, settled_at - lead)
            >= max(local_steps, min(2 * (settled_at - pushed_at) // 3, longest))
        ]

    def hand_in(
        self, shards: Sequence[int] | None = None, *, warming_up: bool = False, compactly: bool = False
    ) -> list[LocalChange]:
        """What changed in `shards` (all) that are not busy, for the engine; they are busy from now on.

        `compactly`: see `LocalCopy.hand_in`. The last changes are handed in exactly.
        """
        wanted = range(len(self.local.bounds)) if shards is None else shards
        ready = [s for s in wanted if s not in self._busy and self._handed_in[s][0] < self.steps]
        changes = []
        for shard, (base, local) in self.local.hand_in(ready, compactly=compactly and not warming_up).items():
            steps, tokens = self._handed_in[shard]
            version = self.local.versions[shard]
            changes.append(LocalChange(shard, version, base, local, self.tokens - tokens, self.steps - steps, warming_up))
            self._handed_in[shard] = (self.steps, self.tokens)
            self._pushed_at[shard] = self.steps
            self._busy.add(shard)
        return changes

    def _stagger(self, local_steps: int) -> None:
        """Move each shard's turn to where it lies in rounds of the new length."""
        n_shards = len(self.local.bounds)
        if self._came_late and not self._local_steps:
            self._pushed_at = [1 - local_steps] * n_shards
            self._settled_at = [1 - local_steps] * n_shards
        if self.streaming:
            for shard in range(n_shards):
                self._pushed_at[shard] += shard * local_steps // n_shards - shard * self._local_steps // n_shards
        self._local_steps = local_steps
