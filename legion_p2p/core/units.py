"""Rates, durations and shares as people write them: `20mbit`, `50ms`, `0.5%`."""

import re

from legion_p2p.errors import UsageError

MIN_RATE_BPS = 8_000.0  # a kilobyte a second: with less, a peer cannot even announce itself
MAX_RATE_BPS = 1e12
MAX_DURATION_S = 60.0

RATE_FORM = "a number and bit, kbit, mbit or gbit (per second), such as 20mbit"
DURATION_FORM = "a number and us, ms or s, such as 50ms"
SIZE_FORM = "a number and kb, mb, gb or tb, such as 8gb"
SHARE_FORM = "a percentage, such as 0.5%"

_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SIZES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([a-z]+|%)")


def parse_rate(text: str) -> float:
    """Bits per second. Raises: UsageError, naming the allowed form."""
    rate_bps = _parse(text, _RATES, "rate", RATE_FORM)
    if not MIN_RATE_BPS <= rate_bps <= MAX_RATE_BPS:
        raise UsageError(f"rate {text!r}: must be between {MIN_RATE_BPS / 1e3:.0f}kbit and {MAX_RATE_BPS / 1e9:.0f}gbit")
    return rate_bps


def parse_duration(text: str) -> float:
    """Seconds. Raises: UsageError, naming the allowed form."""
    duration_s = _parse(text, _DURATIONS, "duration", DURATION_FORM)
    if duration_s > MAX_DURATION_S:
        raise UsageError(f"duration {text!r}: at most {MAX_DURATION_S:.0f}s")
    return duration_s


def parse_share(text: str) -> float:
    """A fraction of one. Raises: UsageError, naming the allowed form."""
    return _parse(text, {"%": 0.01}, "share", SHARE_FORM)


def parse_size(text: str) -> float:
    """Bytes. Raises: UsageError, naming the allowed form."""
    return _parse(text, _SIZES, "size", SIZE_FORM)


def rate_text(rate_bps: float) -> str:
    """The same way back: `20mbit`."""
    for unit in ("gbit", "mbit", "kbit"):
        if rate_bps >= _RATES[unit]:
            return f"{rate_bps / _RATES[unit]:.6g}{unit}"
    return f"{rate_bps:.6g}bit"


def _parse(text: str, units: dict[str, float], what: str, form: str) -> float:
    found = _NUMBER_AND_UNIT.fullmatch(text.strip().lower())
    if found is None or found[2] not in units:
        raise UsageError(f"{what} {text!r}: allowed is {form}")
    return float(found[1]) * units[found[2]]
