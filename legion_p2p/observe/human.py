"""Numbers and names as a person reads them: fixed few characters, no colour, ASCII only."""

import math
import re
import time

PEER_ID_TAIL = 8  # every Ed25519 peer id begins with 12D3KooW; the end is what tells two apart
NOTHING = "-"

_PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")


def clean(text: str, limit: int = 0) -> str:
    """A stranger's text made harmless for a terminal: no control characters or escapes, at most `limit` characters (0: any)."""
    safe = "".join(c if c.isprintable() else " " for c in text)
    return shorten(safe, limit) if limit else safe


def shorten(text: str, limit: int) -> str:
    """The beginning of `text`, marked where something is missing."""
    if len(text) <= limit:
        return text
    return text[: limit - 2] + ".." if limit > 4 else text[:limit]


def short_id(identifier: str) -> str:
    """The end of a peer id or run id."""
    return clean(identifier[-PEER_ID_TAIL:])


def short_ids(text: str) -> str:
    """`text` with every peer id in it shortened."""
    return _PEER_ID.sub(lambda found: short_id(found[0]), text)


def bytes_text(n_bytes: float) -> str:
    """`812 B`, `1.20 kB`, `345 MB`: decimal units, as networks count."""
    return _scaled(n_bytes, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def rate_text(rate_bps: float | None) -> str:
    """`12.5 Mbit/s`; a dash for None."""
    return NOTHING if rate_bps is None else _scaled(rate_bps, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"), " ")


def count_text(count: float) -> str:
    """`812`, `12.3k`, `1.20M`."""
    return _scaled(count, ("", "k", "M", "G", "T", "P"), "")


def whole_text(count: int) -> str:
    """`1,234,567`."""
    return f"{count:,}"


def seconds_text(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:09`, `2 d 03:10`: a clock that keeps its width while it runs."""
    if not math.isfinite(seconds):
        return NOTHING
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def duration_text(seconds: float) -> str:
    """`50 ms`, `1.20 s`, `12.5 min`, `3.16 h`, `2.10 days`: how long something takes."""
    if not math.isfinite(seconds):
        return NOTHING
    units = ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172_800.0, 3600.0, "h"), (math.inf, 86_400.0, "days"))
    unit_s, unit = next((unit_s, unit) for below, unit_s, unit in units if seconds < below)
    size = seconds / unit_s
    return f"{size:.0f} {unit}" if size >= 999.5 or size == int(size) else f"{size:#.3g}".rstrip(".") + f" {unit}"


def percent_text(fraction: float) -> str:
    """`100 %`, `66.7 %`; never 100 for less than all."""
    if not math.isfinite(fraction):
        return NOTHING
    if fraction >= 1 or fraction <= 0:
        return f"{100 * fraction:.0f} %"
    return f"{min(99.9, 100 * fraction):.1f} %"


def loss_text(loss: float | None) -> str:
    """Four decimals below 10; a diverged loss in full view."""
    if loss is None:
        return NOTHING
    if not math.isfinite(loss):
        return str(loss)
    return f"{loss:.4f}" if abs(loss) < 10 else f"{loss:.4g}"


def clock_text(at: float) -> str:
    """Local time of day, from seconds since the epoch."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def hour_text(at: float) -> str:
    """The day and the hour, in local time: 27 Nov 16:00."""
    return time.strftime("%d %b %H:00", time.localtime(at))


def _scaled(value: float, units: tuple[str, ...], gap: str) -> str:
    if not math.isfinite(value):
        return NOTHING
    size = float(value)
    for unit in units:
        # 999.5 would be printed as 1000: it belongs to the next unit
        if abs(size) < 999.5 or unit == units[-1]:
            break
        size /= 1000
    # `#` keeps the zeros: 3.40M beside 3.24M, so that a column of running numbers stands still
    digits = f"{size:.0f}" if abs(size) >= 999.5 or (unit == units[0] and size == int(size)) else f"{size:#.3g}".rstrip(".")
    return f"{digits}{gap}{unit}".rstrip()
