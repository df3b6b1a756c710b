"""A measured course of a link: what it carried at which moment, from a CSV file."""

import bisect
import csv
import math
from pathlib import Path

import msgspec

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.units import MAX_RATE_BPS, MIN_RATE_BPS
from legion_p2p.errors import ConfigError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import read_text

MAX_TRACE_BYTES = 16 << 20
COLUMNS = ("at_s", "up_bps", "down_bps", "rtt_s")
MAX_RTT_S = 60.0


class LinkTrace:
    """Values from each moment on until the next; after the last, the first come again."""

    def __init__(self, times: list[float], values: list[dict[str, float]]) -> None:
        """`times`: ascending, the first 0. The last row lasts as long as the one before it."""
        self._times = times
        self._values = values
        self._period_s = times[-1] + (times[-1] - times[-2] if len(times) > 1 else math.inf)

    def at(self, now: float, profile: LinkProfile) -> LinkProfile:
        """The link at this moment; what the file does not say is as in `profile`."""
        row = bisect.bisect_right(self._times, now % self._period_s) - 1
        return msgspec.structs.replace(profile, **self._values[row])

    def next_change(self, now: float) -> float:
        """The first moment after `now` at which a row begins."""
        if self._period_s == math.inf:
            return math.inf
        n_periods, within = divmod(now, self._period_s)
        row = bisect.bisect_right(self._times, within)
        then = n_periods * self._period_s + (self._times[row] if row < len(self._times) else self._period_s)
        return then if then > now else math.nextafter(now, math.inf)


def read_link_trace(path: str) -> LinkTrace:
    """Raises: ConfigError, naming the file, the line and what is allowed."""
    try:
        text = read_text(Path(path), MAX_TRACE_BYTES)
    except StoreError as bad:
        raise ConfigError(str(bad)) from bad
    rows = csv.DictReader(text.splitlines())
    named = tuple(rows.fieldnames or ())
    unknown = [name for name in named if name not in COLUMNS]
    if "at_s" not in named or unknown or len(named) < 2:
        raise ConfigError(
            f"{shown(path)}: columns {', '.join(named) or 'none'}; allowed are {', '.join(COLUMNS)}, and at_s must be there"
        )
    times: list[float] = []
    values: list[dict[str, float]] = []
    for row in rows:
        where = f"{shown(path)}, line {rows.line_num}"
        read = {name: _number(where, name, row.get(name)) for name in named}
        at_s = read.pop("at_s")
        if at_s < 0 or (times and at_s <= times[-1]) or (not times and at_s):
            raise ConfigError(f"{where}: at_s {at_s:g}; the first must be 0, and each larger than the one before")
        times.append(at_s)
        values.append(read)
    if not times:
        raise ConfigError(f"{shown(path)}: no rows")
    return LinkTrace(times, values)


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ConfigError(f"{where}: {name} is {text!r}, must be a number") from None
    low, high = {"at_s": (0.0, math.inf), "rtt_s": (0.0, MAX_RTT_S)}.get(name, (MIN_RATE_BPS, MAX_RATE_BPS))
    if not low <= value <= high or not math.isfinite(value):
        raise ConfigError(f"{where}: {name} is {value:g}, must be between {low:g} and {high:g}")
    return value
