"""What a node has done for others since it started. Whatever does it counts it here."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from legion_p2p.core.identity import PeerId

MAX_INTRODUCTIONS = 50  # that are remembered: what a person reads
MAX_NAMED = 20  # peers of one of them: as many as an answer of the DHT has


@dataclass(frozen=True)
class Introduction:
    """A peer asked for others, and was told of some."""

    at: float
    """Seconds since the epoch."""
    asker: PeerId
    named: tuple[PeerId, ...]


@dataclass
class Tally:
    """Totals, which only grow."""

    n_connections: int = 0
    """Made, in either direction."""
    n_refused: int = 0
    """Connections turned away: too many of them, or of a peer that is refused because it misbehaved."""
    n_questions: int = 0
    """Streams of the DHT that were answered; each brings one question or a batch of records."""
    introductions: deque[Introduction] = field(default_factory=lambda: deque(maxlen=MAX_INTRODUCTIONS))
    """The newest of them."""

    def introduced(self, asker: PeerId, named: Sequence[PeerId]) -> None:
        """A peer was told of these. What it was told before already counts as the newest again."""
        new = Introduction(time.time(), asker, tuple(named[:MAX_NAMED]))
        same = next((one for one in self.introductions if (one.asker, one.named) == (new.asker, new.named)), None)
        if same is not None:
            self.introductions.remove(same)
        self.introductions.append(new)
