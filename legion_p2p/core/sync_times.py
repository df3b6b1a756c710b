"""When one shard syncs with other regions, counted in its versions.

    CLOSED -> OPEN  at least `every_least` versions after the last sync, and not right after an attempt that failed
    OPEN   -> due   once `wait` versions have passed since the last sync
    asked by another region -> refused, if that comes much too early: the sender may be draining this peer

Can never happen: two syncs with one region at the same version.
"""

from dataclasses import dataclass, field

from legion_p2p.core.bounded import BoundedMap

MAX_REGIONS = 32  # of which the version of the last sync is remembered
N_REMEMBERED = 4.0  # versions that the known duration of a version weighs beside those since the last sync
RETRY = 4  # attempts in the time between two syncs: each costs what a sync does
MUCH = 4  # times as early as it should be: what two peers measure differs by less


@dataclass(eq=False)
class SyncTimes:
    """The syncs of one shard, as one peer counts them."""

    last: int
    """The version at the last sync with any region."""
    at_s: float
    """When that was."""
    not_before: int = 0
    """The version at which to try again after a sync that failed."""
    _by_region: BoundedMap[str, int] = field(default_factory=lambda: BoundedMap(MAX_REGIONS))
    _version_s: float | None = None

    def is_open(self, version: int, every_least: int) -> bool:
        """Whether a sync may be begun at all. `every_least`: what the run allows."""
        return version >= max(self.last + every_least, self.not_before)

    def is_due(self, version: int, wait: int) -> bool:
        """`wait`: versions between two syncs, for the side that is to begin."""
        return version >= self.last + wait

    def is_too_early(self, region: str, version: int, every: int, every_least: int) -> bool:
        """Whether another region asks for a sync much earlier than the connection between the two carries."""
        if self._by_region.get(region) == version:
            return True
        return every > every_least and MUCH * (version - self.last) < every

    def attempted(self, version: int, every: int) -> None:
        """A sync is begun: unless it succeeds, the next attempt is some versions later."""
        self.not_before = version + max(1, every // RETRY)

    def moved(self, version: int, now: float) -> None:
        """The shard was moved by a sync of any kind, also by one that a relay held."""
        self.last, self.at_s = version, now

    def synced(self, region: str, version: int, now: float) -> None:
        """A sync with `region` has succeeded."""
        self._version_s = self.version_s(version, now)
        self.moved(version, now)
        self._by_region[region] = version

    def version_s(self, version: int, now: float) -> float | None:
        """How long a version takes; None: not known.

        By the versions since the last sync, and as if N_REMEMBERED had come before, because the first version after a sync may
        come in the same instant.
        """
        n_new = max(0, version - self.last)
        if self._version_s is None:
            return (now - self.at_s) / n_new if n_new else None
        return (now - self.at_s + N_REMEMBERED * self._version_s) / (n_new + N_REMEMBERED) if n_new else self._version_s
