"""Peers that were away, this one or others, and come back with an older state.

After a split the smaller side was away: it follows the larger one, instead of pulling it back to its own state. Each side sees
the other one return, and judges alike:

    more returned here, of those lost at the same time, than are left here -> this peer was away, and follows
    fewer                                                                  -> they are on probation: not trusted to be up to date
                                                                              until they say, in a new incarnation, that they are

So was one that stood still for longer than the others wait, by either of its clocks; and one that most of the others accuse.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

PROBATION_S = 15.0  # twice the time to be declared dead; then two sides that each think the other was away meet after all
MAX_LOST = 10_000  # names and times of dead peers; the one that was lost longest ago is forgotten first


class Absence:
    """What one peer knows of its own absence and of the others'. The methods that may find out about its own say whether."""

    def __init__(self, me: PeerId, patience_s: float, clocks: Sequence[float]) -> None:
        """`patience_s`: of silence, until one is taken for dead. `clocks`: the monotonic clock, and one that runs on while the
        machine sleeps, in seconds, now. Neither is ever set.
        """
        self.n_doubted = 0
        """Rises with every change of the probation."""
        self._me = me
        self._patience_s = patience_s
        self._looked_at = tuple(clocks)
        self._accusers: dict[PeerId, float] = {}  # peers that considered this one dead, and when
        self._lost: BoundedMap[PeerId, float] = BoundedMap(MAX_LOST)  # the dead, and when they died
        self._returned: dict[PeerId, float] = {}
        self._follows_until = -math.inf
        self._probation: dict[PeerId, tuple[int, float]] = {}  # incarnation that is not trusted to be up to date; until when

    # of this peer

    def look(self, clocks: Sequence[float]) -> bool:
        """True if this peer was suspended or stopped for so long that the others consider it dead.

        Both clocks are compared, because the monotonic one stands still while a machine sleeps (Linux, macOS).
        """
        before, self._looked_at = self._looked_at, tuple(clocks)
        return max(now - then for now, then in zip(self._looked_at, before, strict=True)) > self._patience_s

    def accused_by(self, accuser: PeerId, others: Iterable[PeerId], now: float) -> bool:
        """One that takes us for dead may err, or lie. Where most of the `others` of the region do, they went on without us."""
        there = set(others)
        self._accusers = {p: at for p, at in self._accusers.items() if p in there and now - at < self._patience_s}
        if accuser in there:
            self._accusers[accuser] = now
        if 2 * len(self._accusers) > len(there):
            self._accusers.clear()
            return True
        return False

    # of others

    @property
    def doubts_some(self) -> bool:
        """Some peers are on probation."""
        return bool(self._probation)

    def trusted(self, announcement: Announcement) -> Announcement:
        """The announcement as it counts: a peer on probation is not ready."""
        doubt = self._probation.get(announcement.peer_id) if self._probation else None
        if doubt is None or announcement.incarnation > doubt[0]:
            return announcement
        return msgspec.structs.replace(announcement, ready=False)

    def end_probation(self, now: float) -> bool:
        """The peers whose time is over, if there are any."""
        if not any(until <= now for _, until in self._probation.values()):
            return False
        self._probation = {peer: doubt for peer, doubt in self._probation.items() if doubt[1] > now}
        self.n_doubted += 1
        return True

    def died(self, peer: PeerId, now: float) -> None:
        self.gone(peer)
        self._lost[peer] = now

    def gone(self, peer: PeerId) -> None:
        """It left, or was forgotten."""
        self._returned.pop(peer, None)

    def lives(self, peer: PeerId) -> float | None:
        """It does; when it was lost, if it was."""
        return self._lost.pop(peer, None)

    def returned(self, peer: PeerId, incarnation: int, lost_at: float, others: Iterable[PeerId], now: float) -> bool:
        """A peer that was lost came back, and says that it is ready. `others`: the members of the region now."""
        self._returned = {other: at for other, at in self._returned.items() if now - at < PROBATION_S}
        self._returned[peer] = now
        # Only those lost at the same time are on the other side: a peer that died at another time is on neither.
        there = {other for other, at in self._lost.items() if abs(at - lost_at) < PROBATION_S} | self._returned.keys()
        here = {self._me, *(other for other in others if other not in self._returned)}
        if len(there) > len(here) or (len(there) == len(here) and min(there) < min(here)):
            self._returned.clear()
            self._probation.clear()
            self.n_doubted += 1
            self._follows_until = now + PROBATION_S  # the rest of the larger side returns one by one
            return True
        if now < self._follows_until:
            self._returned.pop(peer)
        else:
            self._probation[peer] = (incarnation, now + PROBATION_S)
            self.n_doubted += 1
        return False
