"""When all members of a run have finished with the same model.

OPEN -> AGREED once this peer and all others are done, and those of its region announce the versions that it holds; of other
               regions their envoys say whether all are done
AGREED -> OPEN as soon as one of them is not done, or the versions differ

A peer believes it after an announcement's time in AGREED: an announcement may be older than what its sender has been sent since.
Members on probation or on their way back count as well, because what they have still to push would change the model. Paused
members are done for now.
"""

from collections.abc import Sequence

from legion_p2p.core.announcement import Announcement


class Agreement:
    """What one peer knows of it."""

    def __init__(self, wait_s: float) -> None:
        """`wait_s`: how long all must agree; the time between two announcements of a member."""
        self._wait_s = wait_s
        self._agreed: tuple[bytes, float] | None = None  # on which state, and since when

    def look(self, done: bool, state: bytes, region: str, others: Sequence[Announcement], now: float) -> bool:
        """Whether all have finished. `done`: this peer has; `state`, `region`: as announced; `others`: all other members."""
        agreed = done and all(a.done and (a.state == state if a.region == region else _all_done(a)) for a in others)
        if not agreed:
            self._agreed = None
            return False
        if self._agreed is None or self._agreed[0] != state:
            self._agreed = (state, now)
        return not others or now - self._agreed[1] >= self._wait_s


def _all_done(envoy: Announcement) -> bool:
    """Whether all members of its region are done, as one of them says that stands for it, or for itself alone."""
    return envoy.region_done or not envoy.envoy
