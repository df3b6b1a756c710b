"""The training side's books: what it has taken in, what it has handed in, and which shards are still on their way.

Used by the optimizer in the training thread, and by simulated peers.
"""

from legion_p2p.services.mailbox import Mailbox
from legion_p2p.services.replica import LocalChange
from legion_p2p.tensor.local import LocalCopy


class Trainee:
    """Between a model that is being trained and the mailbox. Not thread-safe: it belongs to the training side."""

    def __init__(self, local: LocalCopy, mailbox: Mailbox) -> None:
        self.local = local
        self.mailbox = mailbox
        self.steps = 0
        self.tokens = 0
        self.pushed_at = 0
        """The step of the last hand-in."""
        self.last_failure: str | None = None
        """Why the last contribution that failed did."""
        self._busy: set[int] = set()
        self._handed_in = [(0, 0)] * len(local.bounds)
        # Steps and tokens at each shard's last hand-in: a busy shard's change goes on growing.

    @property
    def busy(self) -> bool:
        """Contributions are on their way that no update contains yet."""
        return bool(self._busy)

    @property
    def all_handed_in(self) -> bool:
        return all(self.steps == steps for steps, _ in self._handed_in)

    def stepped(self, tokens: int) -> None:
        """One local step was made."""
        self.steps += 1
        self.tokens += tokens

    def take_in(self) -> None:
        """Take in what has come: new versions into the model, news of contributions into the books."""
        deliveries, settled = self.mailbox.drain()
        for delivery in deliveries:
            self.local.take(delivery.shard, delivery.version, delivery.reference)
        for news in settled:
            self._busy.discard(news.shard)
            if news.failure is not None:
                self.last_failure = news.failure

    def hand_in(self) -> list[LocalChange]:
        """What changed in all shards that are not busy, for the engine; they are busy from now on."""
        n_shards = len(self.local.bounds)
        shards = [s for s in range(n_shards) if s not in self._busy and self._handed_in[s][0] < self.steps]
        changes = []
        for shard, (base, local) in self.local.hand_in(shards).items():
            steps, tokens = self._handed_in[shard]
            version = self.local.versions[shard]
            changes.append(LocalChange(shard, version, base, local, self.tokens - tokens, self.steps - steps))
            self._handed_in[shard] = (self.steps, self.tokens)
            self._busy.add(shard)
        self.pushed_at = self.steps
        return changes
