"""Who misbehaved, and who is refused for it.

GOOD -> REFUSED when offences, each halved every OFFENCE_HALF_LIFE_S, add up to OFFENCE_THRESHOLD; REFUSED -> GOOD after
REFUSAL_S, with a clean record. At most MAX_SCORED_PEERS are remembered: the record that changed longest ago is forgotten first,
so that inventing identities displaces records but never grows memory.
"""

import math
from collections import OrderedDict
from typing import Any

from legion_p2p.core.identity import PeerId
from legion_p2p.net.limits import MAX_SCORED_PEERS, OFFENCE_HALF_LIFE_S, OFFENCE_THRESHOLD, REFUSAL_S


class PeerScore:
    """The standing of every peer, as seen from here. Time comes in as an argument."""

    def __init__(self) -> None:
        self._score: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()  # peer -> (score, when)
        self._refused_until: OrderedDict[PeerId, float] = OrderedDict()

    def offend(self, peer: PeerId, weight: float, now: float) -> bool:
        """Count an offence; True if `peer` has to go because of it."""
        score = self.score(peer, now) + weight
        if score >= OFFENCE_THRESHOLD:
            self._score.pop(peer, None)
            self._refused_until[peer] = now + REFUSAL_S
            _trim(self._refused_until)
            return True
        self._score[peer] = (score, now)
        self._score.move_to_end(peer)
        _trim(self._score)
        return False

    def score(self, peer: PeerId, now: float) -> float:
        """What its offences add up to now."""
        score, when = self._score.get(peer, (0.0, now))
        return score * math.exp2(-(now - when) / OFFENCE_HALF_LIFE_S)

    def is_refused(self, peer: PeerId, now: float) -> bool:
        """Whether it is to be kept out."""
        until = self._refused_until.get(peer)
        if until is None:
            return False
        if now < until:
            return True
        del self._refused_until[peer]
        return False


def _trim(records: OrderedDict[PeerId, Any]) -> None:
    while len(records) > MAX_SCORED_PEERS:
        records.popitem(last=False)
