"""How much of its owner's connection a peer may use, by the time of day."""

import math
import re

import msgspec

from legion_p2p.core.units import parse_rate
from legion_p2p.errors import UsageError

QUIET_BPS = 256e3  # where quiet hours name no rate: enough to stay a member, too little for anybody else to notice
MINUTES_PER_DAY = 24 * 60

QUIET_FORM = "HH:MM-HH:MM or HH:MM-HH:MM=RATE, in local time, such as 22:00-07:00=2mbit"

_QUIET = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})(?:=(.+))?")


class QuietHours(msgspec.Struct, frozen=True):
    """A time of each day with a lower limit, both ways. Minutes since midnight, local time; the end is not part of it."""

    begin_min: int
    end_min: int
    rate_bps: float = QUIET_BPS

    def covers(self, minute: int) -> bool:
        """Whether it is quiet at that minute of the day. The hours may span midnight."""
        if self.begin_min < self.end_min:
            return self.begin_min <= minute < self.end_min
        return minute >= self.begin_min or minute < self.end_min


class Caps(msgspec.Struct, frozen=True):
    """Limits on all traffic of a peer together, in bits per second."""

    upload_bps: float = math.inf
    download_bps: float = math.inf
    quiet: QuietHours | None = None

    def at(self, minute: int) -> tuple[float, float]:
        """What holds at that minute of the day: (upload, download)."""
        if self.quiet is None or not self.quiet.covers(minute):
            return self.upload_bps, self.download_bps
        return min(self.upload_bps, self.quiet.rate_bps), min(self.download_bps, self.quiet.rate_bps)


NO_CAPS = Caps()


def parse_caps(upload: str = "", download: str = "", quiet_hours: str = "") -> Caps:
    """The limits that a user wrote down; empty: none.

    Raises: UsageError, naming the allowed forms.
    """
    return Caps(
        parse_rate(upload) if upload else math.inf,
        parse_rate(download) if download else math.inf,
        parse_quiet_hours(quiet_hours) if quiet_hours else None,
    )


def parse_quiet_hours(text: str) -> QuietHours:
    """Raises: UsageError, naming the allowed form."""
    found = _QUIET.fullmatch(text.replace(" ", ""))
    if found is None:
        raise UsageError(f"quiet hours {text!r}: allowed is {QUIET_FORM}")
    begin, end = _minute(text, found[1], found[2]), _minute(text, found[3], found[4])
    if begin == end:
        raise UsageError(f"quiet hours {text!r}: they end when they begin; for all day, limit upload and download instead")
    return QuietHours(begin, end, parse_rate(found[5]) if found[5] else QUIET_BPS)


def _minute(text: str, hours: str, minutes: str) -> int:
    minute = 60 * int(hours) + int(minutes)
    if int(minutes) > 59 or minute > MINUTES_PER_DAY:
        raise UsageError(f"quiet hours {text!r}: {hours}:{minutes} is no time of day")
    return minute % MINUTES_PER_DAY
