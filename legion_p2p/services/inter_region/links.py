"""What one who speaks for shards knows of the other regions, and of its own meetings with them."""

from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor

from legion_p2p.core.distance import DistanceGuard
from legion_p2p.core.identity import PeerId
from legion_p2p.core.intervals import Interval
from legion_p2p.core.wire import SyncReply, SyncRequest
from legion_p2p.tensor.meeting import Known, norm

CENTER = ""  # in place of a region's label: the center variable, which no region has; it sorts before all of them
MAX_LINKS = 8  # other regions of which is kept what is known, two shards each; who met longest ago begins anew
FADING = 0.5  # of what a copy moved by itself, from one meeting to the next: one quiet interval does not say that it stands still
REMEMBERED = 4.0  # versions


@dataclass(frozen=True, eq=False)
class Asked:
    """A meeting that was begun here, and what was known when it was."""

    peer: PeerId
    message: SyncRequest
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
    answered: tuple[int, SyncReply] | None = None
    staleness: int = 0
    """Meetings' times that the last answer took."""
    interval: Interval | None = None

    def forget(self) -> None:
        self.known, self.digest, self.asked = None, b"", None


@dataclass(eq=False)
class LastSync:
    """When a shard met other regions, in versions, and how far it went by itself."""

    last: int
    at_s: float
    """When that was."""
    by_region: dict[str, int] = field(default_factory=dict)
    not_before: int = 0
    """The version at which to try again, after a meeting that failed."""
    carried: tuple[PeerId, int, int] | None = None
    """From whom the owner took a relay's step last, its number, and at which version."""
    every: int = 0
    """Versions between two meetings at the last one."""
    _version_s: float | None = None
    _seen_at: Tensor | None = None
    _seen: int = 0
    _recent: float = 0.0

    def travelled(self, own: Tensor, version: int) -> float:
        """How far the copy goes by itself between two meetings, as a norm."""
        self._measure(own, version)
        return self._recent

    def leave(self, own: Tensor, after: Tensor, version: int) -> None:
        """A meeting moved the copy at this version."""
        self._measure(own, version)
        self._recent *= FADING
        self._seen_at = after
        self._seen = version

    def is_out_of_date(self, version: int) -> bool:
        """There was no meeting for long: `look` again."""
        return self._seen_at is None or version >= self._seen + 2 * self.every

    def look(self, own: Tensor, version: int) -> None:
        """Measure anew how far it goes between two meetings."""
        self._measure(own, version)
        self._recent *= FADING
        self._seen_at, self._seen = own, version

    def _measure(self, own: Tensor, version: int) -> None:
        if self._seen_at is not None:
            times = max(1.0, (version - self._seen) / (2 * self.every))  # a meeting that gets no answer holds up looking
            self._recent = max(self._recent, norm(own - self._seen_at) / times)

    def note(self, region: str, version: int, now: float) -> None:
        """They met."""
        self._version_s = self.version_s(version, now)
        self.last, self.at_s, self.by_region[region] = version, now, version
        while len(self.by_region) > 4 * MAX_LINKS:
            del self.by_region[next(iter(self.by_region))]

    def version_s(self, version: int, now: float) -> float | None:
        """How long a version takes: by those since the last meeting, and by REMEMBERED of those before, for the first one after a
        meeting may come in the same instant."""
        if self._version_s is None:
            return (now - self.at_s) / (version - self.last) if version > self.last else None
        n_new = max(0, version - self.last)
        return (now - self.at_s + REMEMBERED * self._version_s) / (n_new + REMEMBERED) if n_new else self._version_s


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

    def forget_center(self, shard: int) -> None:
        """The center variable of the shard begins anew."""
        links = self._links.get(shard, {})
        for key in [key for key in links if key[0] == CENTER]:
            del links[key]

    def clear(self) -> None:
        self._links.clear()
