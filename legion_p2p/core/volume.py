"""How much a peer has sent and received in a month, over restarts."""

from typing import Annotated

import msgspec

MONTH = r"^[0-9]{4}-[0-9]{2}\Z"


class MonthlyVolume(msgspec.Struct, frozen=True):
    """Bytes of one month, such as 2026-11; of none at the very start."""

    month: Annotated[str, msgspec.Meta(pattern=MONTH)] = "0000-00"
    n_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0


class VolumeMeter:
    """Adds what a counter that only grows shows to the volume of the month."""

    def __init__(self, before: MonthlyVolume, counted: int = 0) -> None:
        """`before`: what was stored; `counted`: what the counter shows at the start."""
        self.volume = before
        self._counted = counted

    def look(self, counted: int, month: str) -> MonthlyVolume:
        """The volume of this month, now that the counter shows `counted`. A new month begins with nothing."""
        grown = max(0, counted - self._counted)
        self._counted = counted
        before = self.volume.n_bytes if self.volume.month == month else 0
        self.volume = MonthlyVolume(month, before + grown)
        return self.volume
