"""What one who speaks for shards knows of the other regions, and of its own meetings with them."""

from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor

from legion_p2p.core.bandwidth import RateEstimator
from legion_p2p.core.distance import DistanceGuard
from legion_p2p.core.identity import PeerId
from legion_p2p.core.intervals import Interval
from legion_p2p.core.wire import Cross, Crossed
from legion_p2p.tensor.meeting import Known, norm

CENTER = ""  # in place of a region's label: the center variable, which no region has; it sorts before all of them
MAX_LINKS = 8  # other regions of which is kept what is known, two shards each; who met longest ago begins anew
FADING = 0.5  # of what a copy travelled, from one meeting to the next: one quiet interval does not say that it stands still


@dataclass(frozen=True, eq=False)
class Asked:
    """A meeting that was begun here, and what was known when it was."""

    peer: PeerId
    message: Cross
    known: Known | None
    ours: Tensor
    own: Tensor
    """The copy itself, which `ours` is the estimate of."""
    travelled: float
    version: int


@dataclass(eq=False)
class Link:
    """What is known here of the other side, for one shard."""

    guard: DistanceGuard
    known: Known | None = None
    digest: bytes = b""
    asked: Asked | None = None
    is_asking: bool = False
    answered: tuple[int, Crossed] | None = None
    staleness: int = 0
    """Meetings' times that the last answer took."""
    rate: RateEstimator = field(default_factory=lambda: RateEstimator(best=True))
    """Of the meetings themselves."""
    interval: Interval | None = None

    def forget(self) -> None:
        self.known, self.digest, self.asked = None, b"", None


@dataclass(eq=False)
class Met:
    """When a shard met other regions, in versions, and how far it went by itself."""

    last: int
    at_s: float
    """When that was."""
    by_region: dict[str, int] = field(default_factory=dict)
    not_before: int = 0
    """The version at which to try again, after a meeting that failed."""
    carried: tuple[PeerId, int, int] | None = None
    """From whom the owner took a relay's step last, its number, and at which version."""
    left_at: Tensor | None = None
    """The copy, as the last meeting left it, or as this peer began to speak for it."""
    _travelled: float = 0.0

    def travelled(self, own: Tensor) -> float:
        """How far the copy moved by itself since then, as a norm, or lately before."""
        return max(self._travelled, norm(own - self.left_at) if self.left_at is not None else 0.0)

    def leave(self, after: Tensor, travelled: float = 0.0) -> None:
        """A meeting left the copy at `after`, and it had travelled so far until then."""
        self.left_at, self._travelled = after, FADING * travelled

    def note(self, region: str, version: int, now: float) -> None:
        """They met."""
        self.last, self.at_s, self.by_region[region] = version, now, version
        while len(self.by_region) > 4 * MAX_LINKS:
            del self.by_region[next(iter(self.by_region))]

    def version_s(self, version: int, now: float) -> float | None:
        """How long a version takes, by those since the last meeting."""
        return (now - self.at_s) / (version - self.last) if version > self.last else None


class Links:
    """All links of one peer."""

    def __init__(self, moving_rate: float) -> None:
        self._moving_rate = moving_rate
        self._links: dict[int, OrderedDict[tuple[str, str], Link]] = {}

    def get(self, shard: int, mine: str, other: str) -> Link:
        """That of region `mine` towards `other`; a new one where nothing is known."""
        links = self._links.setdefault(shard, OrderedDict())
        link = links.get((mine, other))
        if link is None:
            link = links[mine, other] = Link(DistanceGuard(self._moving_rate))
        links.move_to_end((mine, other))
        while len(links) > MAX_LINKS:
            links.popitem(last=False)
        return link

    def forget_region(self, shard: int) -> None:
        """This peer does not speak for its region any more. What it knows as the center's owner stays."""
        links = self._links.get(shard, {})
        for key in [key for key in links if key[0] != CENTER]:
            del links[key]

    def clear(self) -> None:
        self._links.clear()
