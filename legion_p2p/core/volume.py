"""How much a peer has sent and received in a month, over restarts."""

from typing import Annotated

import msgspec

from legion_p2p.core.bounded import BoundedMap

MAX_MONTHS = 3  # that are remembered beside the present one: a wrong clock is set right once or twice
MONTH = r"^[0-9]{4}-[0-9]{2}\Z"


class MonthlyVolume(msgspec.Struct, frozen=True):
    """Bytes of one month, such as 2026-11; of none at the very start."""

    month: Annotated[str, msgspec.Meta(pattern=MONTH)] = "0000-00"
    n_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0


class VolumeMeter:
    """Adds what a counter that only grows shows to the volume of the month.

    A clock that is set to another month for a while, and back, does not make a month's volume forgotten.
    """

    def __init__(self, before: MonthlyVolume, counted: int = 0) -> None:
        """`before`: what was stored; `counted`: what the counter shows at the start."""
        self.volume = before
        self._counted = counted
        self._others: BoundedMap[str, int] = BoundedMap(MAX_MONTHS)

    def look(self, counted: int, month: str) -> MonthlyVolume:
        """The volume of this month, now that the counter shows `counted`. A new month begins with nothing."""
        grown = max(0, counted - self._counted)
        self._counted = counted
        if month != self.volume.month:
            self._others[self.volume.month] = self.volume.n_bytes
            self.volume = MonthlyVolume(month, self._others.get(month, 0))
        self.volume = MonthlyVolume(month, self.volume.n_bytes + grown)
        return self.volume
