"""The score, or reputation, of each peer: which misbehaved, and which are refused for it.

GOOD -> REFUSED when what a peer did wrong, halved every SCORE_HALF_LIFE_S, adds up to MAX_SCORE; REFUSED -> GOOD after REFUSAL_S,
with a clean record. At most MAX_SCORED_PEERS are remembered: the record that changed longest ago is forgotten first, so that
inventing identities displaces records but never grows memory.
"""

import logging
import math
from typing import Final

import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.net.limits import MAX_SCORE, MAX_SCORED_PEERS, REFUSAL_S, SCORE_HALF_LIFE_S

REFUSED: Final = "it is refused here for a while, because it misbehaved"

log = logging.getLogger("legion_p2p.net")


class PeerScore:
    """The score of every peer, as seen from here. Time comes in as an argument."""

    def __init__(self) -> None:
        self._score: BoundedMap[PeerId, tuple[float, float]] = BoundedMap(MAX_SCORED_PEERS)  # peer -> (score, when)
        self._refused_until: BoundedMap[PeerId, float] = BoundedMap(MAX_SCORED_PEERS)

    def misbehaved(self, peer: PeerId, weight: float, now: float) -> bool:
        """Count something that it did wrong; True if `peer` has to go because of it."""
        score = self.score(peer, now) + weight
        if score >= MAX_SCORE:
            self._score.pop(peer, None)
            self._refused_until[peer] = now + REFUSAL_S
            return True
        self._score[peer] = (score, now)
        return False

    def score(self, peer: PeerId, now: float) -> float:
        """What its misbehaviour adds up to now; 0 is best."""
        score, when = self._score.get(peer, (0.0, now))
        return score * math.pow(0.5, (now - when) / SCORE_HALF_LIFE_S)

    def is_refused(self, peer: PeerId, now: float) -> bool:
        """Whether it is to be kept out."""
        until = self._refused_until.get(peer)
        if until is None:
            return False
        if now < until:
            return True
        del self._refused_until[peer]
        return False


class Refusals:
    """The scores of one host's peers, now; and whoever acts when one of them is to be refused."""

    def __init__(self) -> None:
        self._scores = PeerScore()
        self.refused: Observers[PeerId] = Observers()
        """Told of each peer that is refused from now on: cut what connects it."""

    def report(self, peer: PeerId, misbehaviour: str, weight: float = 1.0) -> None:
        """Count it against `peer`."""
        log.debug("misbehaviour of %s: %s", peer, misbehaviour)
        if self._scores.misbehaved(peer, weight, trio.current_time()):
            log.warning("disconnecting %s, and refusing it for a while: %s", peer, misbehaviour)
            self.refused.tell(peer)

    def score(self, peer: PeerId) -> float:
        """What its misbehaviour adds up to now."""
        return self._scores.score(peer, trio.current_time())

    def is_refused(self, peer: PeerId) -> bool:
        """Whether `peer` is kept out now."""
        return self._scores.is_refused(peer, trio.current_time())
