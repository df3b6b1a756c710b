"""Which members are pinged, and when: often enough to know where this peer is, and no more.

Of each region the N_NEIGHBOURS that a hash chooses are measured, and whoever this peer is a witness of (core/witnesses.py).

    little known -> pinged each period, until NEAR_SAMPLES round trips are known of a near member, MANY_SAMPLES of a far one
    known        -> pinged PING_AGAIN_S after the last round trip, and twice as long after it while each confirms the shortest,
                    up to PING_RARELY_S
    known        -> doubted when a round trip is another one, because a path has changed, or a machine is busy: pinged each period
                    until one confirms the shortest again, or MANY_SAMPLES later no shorter one is remembered
    two doubted  -> this peer may have moved: all are pinged PING_AGAIN_S after their last round trip

Round trips that are measured in passing, in exchanges of announcements, count like pings.

Never happens: more than N_PINGED members are pinged in a period, beside one that this peer is a witness of; the number of pings
grows with the members of a region.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from heapq import nsmallest

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.regions import DEFAULTS, MANY_SAMPLES

N_NEIGHBOURS = 16  # in each region: if a fifth of all lie, half of these 16 do in one case of 150
N_PINGED = 3  # in each period: 500 bytes
NEAR_SAMPLES = (
    3  # delay is only ever added, so one short round trip proves that a member is near; the median of three is no late packet
)
PING_AGAIN_S = 15.0  # paths change slowly
PING_RARELY_S = 120.0  # a path that has changed is noticed within that time, by the first of many members
CONFIRMS_S = 0.005  # of the machine, whatever the distance
CONFIRMS = 0.35  # of the shortest round trip


class RoundTrips(msgspec.Struct, frozen=True):
    """The round trips to one member."""

    n_samples: int = 0
    least_s: float = math.inf


class PingPlan:
    """Whom one peer pings."""

    def __init__(self, me: PeerId) -> None:
        self.neighbours: tuple[PeerId, ...] = ()
        """Those to measure, of all regions."""
        self._me = me
        self._members: frozenset[PeerId] = frozenset()
        self._tried_at: dict[PeerId, float] = {}
        self._measured_at: dict[PeerId, float] = {}
        self._pause_s: dict[PeerId, float] = {}

    def members(self, region_of: Mapping[PeerId, str]) -> None:
        """The members and their regions, this peer excluded, are these from now on."""
        regions: dict[str, list[PeerId]] = {}
        for peer, region in region_of.items():
            regions.setdefault(region, []).append(peer)
        self.neighbours = tuple(
            peer for _, found in sorted(regions.items()) for peer in nsmallest(N_NEIGHBOURS, found, key=self._rank)
        )
        self._members = frozenset(region_of)
        for books in (self._tried_at, self._measured_at, self._pause_s):
            for gone in books.keys() - self._members:
                del books[gone]

    def tried(self, peer: PeerId, now: float) -> None:
        """A ping goes out."""
        self._tried_at[peer] = now

    def measured(self, peer: PeerId, rtt_s: float, before: RoundTrips, now: float) -> None:
        """A round trip; `before`: what was known without it."""
        pause_s = self._pause_s.get(peer, PING_AGAIN_S)
        waited_s = now - self._measured_at.get(peer, now)
        is_confirmed = abs(rtt_s - before.least_s) <= max(CONFIRMS_S, CONFIRMS * before.least_s)
        self._tried_at[peer] = self._measured_at[peer] = now
        if is_confirmed:
            self._pause_s[peer] = min(max(pause_s, 2 * waited_s, PING_AGAIN_S), PING_RARELY_S)
        else:
            self._pause_s[peer] = 0.0
            if list(self._pause_s.values()).count(0.0) > 1:
                self._pause_s = {other: min(pause_s, PING_AGAIN_S) for other, pause_s in self._pause_s.items()}

    def due(self, subjects: Collection[PeerId], known: Callable[[PeerId], RoundTrips], now: float) -> list[PeerId]:
        """Whom to ping in this period. `subjects`: those that this peer is a witness of."""
        watched = dict.fromkeys([*self.neighbours, *self._members.intersection(subjects)])
        wanted = {peer: found for peer in watched if self._is_due(peer, found := known(peer), now)}
        least_known = nsmallest(N_PINGED, wanted, key=lambda peer: (wanted[peer].n_samples, self._last_tried(peer), peer))
        subject = min((peer for peer in subjects if peer in wanted), key=self._last_tried, default=None)
        return list(dict.fromkeys(least_known + ([] if subject is None else [subject])))

    def _is_due(self, peer: PeerId, known: RoundTrips, now: float) -> bool:
        enough = NEAR_SAMPLES if known.least_s <= DEFAULTS.radius_s else MANY_SAMPLES
        return known.n_samples < enough or now - self._last_tried(peer) >= self._pause_s.get(peer, PING_AGAIN_S)

    def _last_tried(self, peer: PeerId) -> float:
        return self._tried_at.get(peer, -math.inf)

    def _rank(self, peer: PeerId) -> bytes:
        return hashlib.blake2b(f"legion/neighbour/{self._me}/{peer}".encode(), digest_size=8).digest()
