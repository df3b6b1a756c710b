"""Which region a peer belongs to. Each decides for itself, from what all announce: their regions and network coordinates.

A region is where its members are: at the median of their coordinates, so that a few that lie about theirs do not move it.

    none -> the nearest within `radius_s`, or a new one
    member -> the half that leaves a region of more than `max_members`
    member -> the larger one of two regions within `merge_s` of each other that fit into one; or of any region within `reach_s`,
              from one of fewer than `min_members`
    member -> another one that is nearer by `margin` and MIN_GAIN_S
    member -> the nearest within `radius_s`, or a new one, when its own is further than twice `radius_s`

Everything but the first happens only after `patience` looks in a row that said the same: hysteresis. A peer alone in its region
leaves no other behind, and moves at the first. Of two regions that could join each other the one that ranks lower (fewer members,
then the label) moves, so that all agree on which, and none swap.

Near is what is near for the length of a round. An answer that takes a fifth of a round comes one local step of five late, which
costs next to nothing, while two regions of two lose 2 to 4 % to one (docs/records/regions.md). So where rounds are long, because
steps are long or because the members' rate makes rounds long, all distances above are larger by one factor (`widened`): what
limits such a run is its rate, and regions would not help. The factor follows from medians of what all announce.

How far a region is: the median of the round trips to its members that this peer measured, the shortest of each; what the
coordinates say, if it measured few of them and its own coordinate has settled. Otherwise it is unknown, and no reason to join or
leave. A busy machine makes round trips longer and never shorter: a short one proves at once that a peer is near, and a long
one counts only with FEW_SAMPLES beside it, or MANY_SAMPLES where it would have this peer leave its region.

Never happens: a peer without a region after its first look; two peers with the same announcements and the same coordinate that
decide differently to merge or split.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median, median_low

import msgspec

from legion_p2p.core.adapt import SHARE
from legion_p2p.core.coordinates import MAX_COORDINATE_S, MIN_HEIGHT_S, N_DIMENSIONS, ORIGIN, UNSETTLED, Coordinate
from legion_p2p.core.identity import PeerId

MIN_GAIN_S = 0.010  # a region that is nearer by less is not worth a move, whatever the share
ROOM = 0.8  # of `max_members` that a merged region may fill: or it would split again soon
LABEL_CHARS = 8
FEW_SAMPLES = 5
MANY_SAMPLES = 16
NEAR_SHARE = 0.2  # of a round: a round trip of no more than that is near
MAX_RADIUS_S = 0.5  # a round trip around the world and two home connections; what takes longer is congested
MIN_MEASURED = 3  # members that were measured, or all where they are fewer, before their median counts: one may be slow, or lie


class RegionConfig(msgspec.Struct, frozen=True):
    """How regions form."""

    radius_s: float = 0.050
    """Round trip to a region's middle up to which a peer joins it. More: fewer, larger regions whose rounds take longer."""
    merge_s: float = 0.040
    """Regions whose middles are nearer than this become one."""
    reach_s: float = 0.100
    """How far a region of fewer than `min_members` looks for another one to join; further away it stays by itself."""
    min_members: int = 2
    max_members: int = 64
    """More split: each round of an owner waits for all of them."""
    margin: float = 0.25
    """How much nearer another region must be, as a share."""
    patience: int = 3
    """Looks in a row before a member moves. More: steadier, and slower to follow."""


DEFAULTS = RegionConfig()


def expected_round_s(local_steps: int, steps_s: Iterable[float], least_bits: float, uploads_bps: Iterable[float]) -> float:
    """How long a round takes, by the medians of what members announce: its local steps, or the sending of `least_bits`.

    `steps_s` and `uploads_bps` of 0 are not known. Rounds get the share of a connection that core/adapt.py gives them. Returns 0
    if nothing is known.
    """
    steps = [s for s in steps_s if s > 0]
    uploads = [bps for bps in uploads_bps if bps > 0]
    training_s = local_steps * median_low(steps) if steps else 0.0
    return max(training_s, least_bits / (SHARE * median_low(uploads)) if uploads else 0.0)


def widened(config: RegionConfig, round_s: float) -> RegionConfig:
    """`config` where rounds take `round_s`: all distances larger by what a share of the round is above the radius."""
    radius_s = min(NEAR_SHARE * round_s, MAX_RADIUS_S)
    factor = radius_s / config.radius_s
    if factor <= 1:
        return config
    return msgspec.structs.replace(config, radius_s=radius_s, merge_s=factor * config.merge_s, reach_s=factor * config.reach_s)


class Placed(msgspec.Struct, frozen=True):
    """What a member announces of where it is."""

    peer_id: PeerId
    region: str
    coordinate: Coordinate


class Measured(msgspec.Struct, frozen=True):
    """The shortest of the last round trips to a member, and how many they are."""

    least_s: float
    n: int


class Region(msgspec.Struct, frozen=True):
    """A region as its members announce it."""

    label: str
    members: tuple[Placed, ...]
    middle: Coordinate | None
    """None: no peer is believed to be where it says."""

    size: int
    """Members, also those that are not known here."""

    @property
    def rank(self) -> tuple[int, str]:
        """Of two regions that merge the one that ranks higher stays."""
        return self.size, self.label


def regions_of(
    announced: Iterable[Placed], doubted: Collection[PeerId] = (), sizes: Mapping[str, int] | None = None
) -> dict[str, Region]:
    """All regions that have a member, by label. The coordinates of `doubted` peers move no middle. `sizes`: how many members a
    region has, where that is more than are announced here."""
    members: dict[str, list[Placed]] = {}
    for placed in announced:
        if placed.region:
            members.setdefault(placed.region, []).append(placed)
    return {
        label: Region(
            label,
            tuple(sorted(found, key=lambda p: p.peer_id)),
            _middle(found, doubted),
            max(len(found), (sizes or {}).get(label, 0)),
        )
        for label, found in sorted(members.items())
    }


class RegionChoice:
    """One peer's choice of its region."""

    def __init__(self, me: PeerId, config: RegionConfig = DEFAULTS) -> None:
        self.region = ""
        self._me = me
        self.config = self._narrowest = config
        self._wish = ""
        self._n_wished = 0
        self._n_founded = 0
        self._here = ORIGIN
        self._measured: Mapping[PeerId, Measured] = {}

    def look(
        self,
        coordinate: Coordinate,
        regions: Mapping[str, Region],
        measured: Mapping[PeerId, Measured] | None = None,
        round_s: float = 0.0,
    ) -> str:
        """Once per announcement period, with everything announced, this peer included: the region to announce from now on.

        `round_s`: how long a round takes, see `expected_round_s`; 0: not known.
        """
        self.config = widened(self._narrowest, round_s)
        self._here, self._measured = coordinate, measured or {}
        if not self.region:
            return self._move(self._nearest_or_new(regions))
        wish = self._wanted(regions)
        if wish == self.region:
            self._wish, self._n_wished = "", 0
            return self.region
        self._n_wished = self._n_wished + 1 if wish == self._wish else 1
        self._wish = wish
        patience = 1 if regions[self.region].size == 1 else self.config.patience
        return self._move(wish) if self._n_wished >= patience else self.region

    def _wanted(self, regions: Mapping[str, Region]) -> str:
        config, mine = self.config, regions.get(self.region)
        if mine is None:  # not announced yet
            return self.region
        child = _child_label(mine)
        if mine.size > config.max_members or (self._wish == child and child in regions):  # in the middle of it others have left
            return child if self._leaves(mine) else self.region
        into = self._merges_into(mine, regions)
        if into is not None:
            return into.label
        here_s = self._away_s(mine)
        near = self._nearest(regions, config.max_members)
        if near is not None and near.label != mine.label:
            there_s = self._away_s(near)
            if there_s <= min(config.radius_s, (1 - config.margin) * here_s, here_s - MIN_GAIN_S):
                return near.label
        if 2 * config.radius_s < here_s < math.inf:
            return self._nearest_or_new({label: r for label, r in regions.items() if label != mine.label})
        return self.region

    def _nearest_or_new(self, regions: Mapping[str, Region]) -> str:
        near = self._nearest(regions, self.config.max_members + 1)
        if near is not None and self._away_s(near) <= self.config.radius_s:
            return near.label
        return new_label(self._me, self._n_founded)

    def _nearest(self, regions: Mapping[str, Region], most_members: int) -> Region | None:
        open_ones = [r for r in regions.values() if r.size < most_members or r.label == self.region]
        return min(open_ones, key=lambda r: (self._away_s(r), r.label), default=None)

    def _away_s(self, region: Region) -> float:
        """The round trip to the others of a region; infinite if it is unknown."""
        others = [p.peer_id for p in region.members if p.peer_id != self._me]
        if not others:
            return 0.0
        enough = MANY_SAMPLES if region.label == self.region else FEW_SAMPLES
        measured = [self._measured[peer] for peer in others if peer in self._measured]
        if len(measured) >= min(MIN_MEASURED, len(others)):
            sure = [m.least_s for m in measured if m.least_s <= self.config.radius_s or m.n >= enough]
            return median_low(sure) if len(sure) >= min(MIN_MEASURED, len(others)) else math.inf
        return _between_s(self._here, region.middle) if self._here.error < UNSETTLED else math.inf

    def _merges_into(self, mine: Region, regions: Mapping[str, Region]) -> Region | None:
        """The highest-ranking of those that this region should join; None: it stays."""
        config, alone = self.config, mine.size == 1
        reach_s = config.reach_s if mine.size < config.min_members else config.merge_s
        most = (1 if alone else ROOM) * config.max_members
        fitting = [
            other
            for other in regions.values()
            if other.rank > mine.rank
            and other.size + mine.size <= most
            and (self._away_s(other) if alone else _between_s(mine.middle, other.middle)) <= reach_s
        ]
        return max(fitting, key=lambda r: r.rank, default=None)

    def _leaves(self, region: Region) -> bool:
        """Whether this peer is in the half that leaves: beyond the median along the line between two members far apart."""
        positions = {p.peer_id: p.coordinate.position for p in region.members}
        if self._me not in positions:
            return False
        center = (region.middle or ORIGIN).position
        a = max(positions, key=lambda p: (math.dist(positions[p], center), p))
        b = max(positions, key=lambda p: (math.dist(positions[p], positions[a]), p))
        axis = [y - x for x, y in zip(positions[a], positions[b], strict=True)]
        along = sorted((_dot(axis, at), p) for p, at in positions.items())
        return self._me in {p for _, p in along[(len(along) + 1) // 2 :]}

    def _move(self, label: str) -> str:
        if label == new_label(self._me, self._n_founded):
            self._n_founded += 1
        self.region, self._wish, self._n_wished = label, "", 0
        return label


def new_label(creator: PeerId, nth: int) -> str:
    """The label of the nth region that a peer creates; the region outlives that peer."""
    return hashlib.sha256(f"legion/region/{creator}/{nth}".encode()).hexdigest()[:LABEL_CHARS]


def _child_label(region: Region) -> str:
    """The label of the half that leaves: the same for all peers that see the region."""
    return hashlib.sha256(f"legion/region/half of {region.label}".encode()).hexdigest()[:LABEL_CHARS]


def _middle(members: list[Placed], doubted: Collection[PeerId]) -> Coordinate | None:
    believed = [p.coordinate for p in members if p.peer_id not in doubted]
    if not believed:
        return None
    settled = [at for at in believed if at.error < UNSETTLED] or believed
    position = tuple(median(at.position[i] for at in settled) for i in range(N_DIMENSIONS))
    height = median(at.height for at in settled)
    return Coordinate(position, min(max(height, MIN_HEIGHT_S), MAX_COORDINATE_S), 0.0)


def _between_s(a: Coordinate | None, b: Coordinate | None) -> float:
    return a.rtt_s(b) if a is not None and b is not None else math.inf


def _dot(a: list[float], b: tuple[float, ...]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
