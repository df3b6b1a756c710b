"""What a node has done for others since it started. Whatever does it counts it here."""

from dataclasses import dataclass


@dataclass
class Tally:
    """Totals, which only grow."""

    n_connections: int = 0
    """Made, in either direction."""
    n_refused: int = 0
    """Connections turned away: too many of them, or of a peer that is refused because it misbehaved."""
    n_questions: int = 0
    """Streams of the DHT that were answered; each brings one question or a batch of records."""
