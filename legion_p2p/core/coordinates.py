"""Where a peer is, in milliseconds: network coordinates that predict the round trip between peers that never exchanged one.

Vivaldi with height (Dabek, Cox, Kaashoek and Morris, SIGCOMM 2004): each peer has a point and, above it, the height of its access
link; a round trip is the distance of the points plus both heights. Each measured round trip is a spring that pulls the coordinate
towards where it would fit, the weaker the surer this peer is and the less sure the other. Two things make it stand still in
practice (Ledlie, Gardner and Seltzer, NSDI 2007): a filter that takes the median of a pair's last round trips (one late packet
moves nothing), and a gravity towards the origin (the whole cloud does not drift away).

    sample -> filtered -> coordinate moved, error updated

Never happens: a coordinate or an error that is not finite, or beyond the bounds named here, whatever a stranger claims; one round
trip that pulls the coordinate further than it could push it, or by more than MAX_PULL_S, whichever is more.
"""

import math
from collections import deque
from collections.abc import Sequence
from random import Random
from statistics import median_low
from typing import Annotated

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

N_DIMENSIONS = 4
"""With height, more than 4 bring nothing on real delays (Dabek et al., section 5.4, found 2 to 3 enough)."""

MAX_COORDINATE_S = 10.0  # no two points on earth are further apart, satellites and full queues included
MIN_HEIGHT_S = 1e-5
MAX_RTT_S = 10.0
MAX_PULL_S = 0.1  # how much too far a peer may seem: one that claims to be 10 s away would pull all the others there
UNSETTLED = 0.75  # half of the largest error: such a coordinate tells nobody where its owner is
MAX_PAIRS = 512  # peers whose last round trips are kept for the filter; those heard of longest ago are forgotten

STEADY_S = 0.005  # a coordinate that has moved by less is announced as it was: witnesses tolerate four times as much
STEADY_ERROR = 2.0  # so is an error that has become less than this many times as large, or as small,
SURE = 0.1  # or that was below this and is

_Seconds = Annotated[float, msgspec.Meta(ge=-MAX_COORDINATE_S, le=MAX_COORDINATE_S)]


class CoordinateConfig(msgspec.Struct, frozen=True):
    """How a coordinate moves."""

    gain: float = 0.25
    """Share of the way to where a sample would fit, at equal errors (c_c of Vivaldi). More: quicker, and less steady."""
    error_gain: float = 0.25
    """The same for the error (c_e)."""
    filter_size: int = 5
    """Round trips of a pair of which the lower median counts: delay is only ever added. More: steadier, later to see a change."""
    kept: int = 16
    """Round trips of a pair that are remembered, for the shortest of them. More: surer on a busy machine, later to see that
    somebody has moved away."""
    filter_age_s: float = 600.0
    """Older ones are left out."""
    gravity_s: float = 0.5
    """At this distance from the origin every sample pulls by a millisecond towards it, further out with the square (rho). Less:
    less drift, and the cloud is squeezed."""
    max_error: float = 1.5


DEFAULTS = CoordinateConfig()


class Coordinate(msgspec.Struct, frozen=True, array_like=True):
    """A point in seconds, its height, and the relative error that its owner expects. Bounds are checked when it is decoded."""

    position: Annotated[tuple[_Seconds, ...], msgspec.Meta(min_length=N_DIMENSIONS, max_length=N_DIMENSIONS)]
    height: Annotated[float, msgspec.Meta(ge=MIN_HEIGHT_S, le=MAX_COORDINATE_S)] = MIN_HEIGHT_S
    error: Annotated[float, msgspec.Meta(ge=0, le=10)] = DEFAULTS.max_error

    def rtt_s(self, other: "Coordinate") -> float:
        """The expected round trip between two peers."""
        return math.dist(self.position, other.position) + self.height + other.height


ORIGIN = Coordinate((0.0,) * N_DIMENSIONS)


class Locator:
    """This peer's own coordinate."""

    def __init__(self, rng: Random, config: CoordinateConfig = DEFAULTS) -> None:
        self.coordinate = ORIGIN
        self._config = config
        self._rng = rng
        self._samples: BoundedMap[PeerId, deque[tuple[float, float]]] = BoundedMap(MAX_PAIRS)
        self._least_s: dict[PeerId, float] = {}  # of each of them: asked for many times between two samples

    @property
    def n_heard(self) -> int:
        """Peers that were measured."""
        return len(self._samples)

    def sample(self, peer: PeerId, rtt_s: float, now: float) -> None:
        """A round trip to `peer`. What cannot be one is ignored."""
        if not 0 < rtt_s <= MAX_RTT_S:
            return
        samples = self._samples.setdefault(peer, deque(maxlen=self._config.kept))
        self._samples.touch(peer)
        samples.append((now, rtt_s))
        while now - samples[0][0] > self._config.filter_age_s:
            samples.popleft()
        self._least_s[peer] = min(rtt_s for _, rtt_s in samples)
        if len(self._least_s) > len(self._samples):  # one of them was forgotten
            self._least_s = {kept: self._least_s[kept] for kept in self._samples}

    def fit(self, peer: PeerId, theirs: Coordinate) -> None:
        """Move towards where the round trips to `peer`, which says it is at `theirs`, would fit, if there are any."""
        if (rtt_s := self.measured_s(peer)) is not None:
            self._move(theirs, rtt_s)

    def observe(self, peer: PeerId, theirs: Coordinate, rtt_s: float, now: float) -> None:
        """`sample` and `fit`."""
        self.sample(peer, rtt_s, now)
        self.fit(peer, theirs)

    def forget(self, peer: PeerId) -> None:
        """It has left."""
        self._samples.pop(peer, None)
        self._least_s.pop(peer, None)

    def n_samples(self, peer: PeerId) -> int:
        """Round trips to `peer` that are remembered."""
        return len(self._samples.get(peer, ()))

    def measured_s(self, peer: PeerId) -> float | None:
        """The filtered round trip to `peer`, where there is one."""
        samples = self._samples.get(peer)
        return None if samples is None else median_low([rtt_s for _, rtt_s in samples][-self._config.filter_size :])

    def least_s(self, peer: PeerId) -> float | None:
        """The shortest of the last round trips to `peer`: what a busy machine adds to most of them is not in it."""
        return self._least_s.get(peer)

    def _move(self, theirs: Coordinate, rtt_s: float) -> None:
        config, mine = self._config, self.coordinate
        expected_s = mine.rtt_s(theirs)
        weight = mine.error / max(mine.error + theirs.error, 1e-9)
        off = abs(expected_s - rtt_s) / rtt_s
        gain = config.error_gain * weight
        error = min(max(off * gain + mine.error * (1 - gain), 1e-3), config.max_error)

        force_s = config.gain * weight * max(rtt_s - expected_s, -max(rtt_s, MAX_PULL_S))
        direction, distance_s = self._away_from(theirs)
        position = [x + force_s * u for x, u in zip(mine.position, direction, strict=True)]
        height = mine.height
        if distance_s > 0:  # the height takes its share of the force: it is as much a part of the way as the distance
            height += force_s * (mine.height + theirs.height) / distance_s
        # gravity: rho of Ledlie et al., section 4.2
        out_s = math.hypot(*position)
        if out_s > 0:
            pull_s = min(1e-3 * (out_s / config.gravity_s) ** 2, out_s)
            position = [x - pull_s * x / out_s for x in position]
        self.coordinate = Coordinate(
            tuple(_bounded(x, -MAX_COORDINATE_S, MAX_COORDINATE_S) for x in position),
            _bounded(height, MIN_HEIGHT_S, MAX_COORDINATE_S),
            error,
        )

    def _away_from(self, theirs: Coordinate) -> tuple[Sequence[float], float]:
        """The unit vector from there to here, and the distance; two at the same point move apart in a random direction."""
        difference = [a - b for a, b in zip(self.coordinate.position, theirs.position, strict=True)]
        distance_s = math.hypot(*difference)
        if distance_s > 1e-6:
            return [d / distance_s for d in difference], distance_s
        random = [self._rng.gauss(0, 1) for _ in range(N_DIMENSIONS)]
        length = math.hypot(*random) or 1.0
        return [r / length for r in random], 0.0


class SteadyCoordinate:
    """A coordinate as it is announced: it follows one that trembles in steps (as the application-level coordinates of Ledlie et
    al.), so that what others know, and what they computed from it, stays true for long."""

    def __init__(self) -> None:
        self._announced: Coordinate | None = None

    def look(self, now: Coordinate) -> Coordinate:
        """What to announce, where this peer is at `now`."""
        before = self._announced
        if before is not None and _moved_s(before, now) <= STEADY_S and _is_as_sure(before.error, now.error):
            return before
        self._announced = now
        return now


def _moved_s(a: Coordinate, b: Coordinate) -> float:
    """By how much more or less any round trip is expected to take."""
    return math.dist(a.position, b.position) + abs(a.height - b.height)


def _is_as_sure(before: float, now: float) -> bool:
    low, high = sorted(max(error, SURE) for error in (before, now))
    return high < STEADY_ERROR * low and (before < UNSETTLED) == (now < UNSETTLED)


def _bounded(x: float, low: float, high: float) -> float:
    return min(max(x, low), high) if math.isfinite(x) else low
