"""Links by name, and how a link is written: `cable`, `dsl,loss=1%`, `up=20mbit,down=100mbit,rtt=50ms,jitter=5ms`.

Round trips are to a near server: between two homes both count. Figures are rounded; "chosen" means that no survey stands behind
them.
"""

import re

import msgspec

from legion_p2p.core.access_link import NO_LINK, LinkProfile
from legion_p2p.core.priority import Priority
from legion_p2p.core.units import parse_duration, parse_rate, parse_share
from legion_p2p.errors import UsageError

MAX_LOSS = 0.5
MAX_PLACES = 250
MAX_SPEC_CHARS = 1000

GOOD = LinkProfile(up_bps=50e6, down_bps=100e6, rtt_s=0.010, jitter_s=0.001, loss=0.0002)
"""50 up, 100 down (Mbit/s), 10 ms, 1 ms jitter, 0.02 % loss. Median fixed line of the world, 2022 to 2024: Ookla, Speedtest
Global Index. Jitter and loss chosen, within the best class (under 0.4 %) of FCC, Measuring Broadband America."""

CELLULAR = LinkProfile(up_bps=11e6, down_bps=55e6, rtt_s=0.028, jitter_s=0.008, loss=0.002)
"""11 up, 55 down, 28 ms, 8 ms jitter, 0.2 % loss. Median mobile connection of the world, 2022 to 2024: Ookla, Speedtest
Global Index. Jitter and loss chosen: the radio link retransmits, so that loss appears as jitter."""

DEGRADED = LinkProfile(up_bps=2e6, down_bps=15e6, rtt_s=0.040, jitter_s=0.015, loss=0.015)
"""2 up, 15 down, 40 ms, 15 ms jitter, 1.5 % loss. ADSL in the evening or weak Wi-Fi: the slow DSL tiers and the worst loss class
(over 1 %) of FCC, Measuring Broadband America; jitter chosen."""

BROWNOUT = LinkProfile(up_bps=256e3, down_bps=1e6, rtt_s=0.120, jitter_s=0.060, loss=0.08)
"""0.256 up, 1 down, 120 ms, 60 ms jitter, 8 % loss. Chosen: a link that fails, where connections still come about."""

STRAGGLER = LinkProfile(up_bps=5e6, down_bps=25e6, rtt_s=0.030, jitter_s=0.003, loss=0.001)
"""5 up, 25 down, 30 ms, 3 ms jitter, 0.1 % loss. Clean but slow, a tenth of `good` upwards; down as in the FCC's definition of
broadband of 2015 (25/3), the rest chosen."""

SATELLITE = LinkProfile(up_bps=3e6, down_bps=50e6, rtt_s=0.600, jitter_s=0.015, loss=0.005)
"""3 up, 50 down, 600 ms, 15 ms jitter, 0.5 % loss. A geostationary satellite: 4 x 35,786 km at the speed of light are 477 ms, the
rest is the ground's. Rates as plans of such providers are sold; jitter and loss chosen."""

FIBRE = LinkProfile(up_bps=1000e6, down_bps=1000e6, rtt_s=0.010, jitter_s=0.001)
"""1000 up, 1000 down, 10 ms, 1 ms jitter, no loss. The usual gigabit plan (GPON shares 2.5/1.25 Gbit/s, ITU-T G.984); latency as
FCC, Measuring Broadband America finds it for fibre, about 10 ms."""

CABLE = LinkProfile(up_bps=20e6, down_bps=250e6, rtt_s=0.025, jitter_s=0.003, loss=0.0005)
"""20 up, 250 down, 25 ms, 3 ms jitter, 0.05 % loss. A middle DOCSIS 3.0 plan: more than 10:1, as the standard's narrow upstream
band brings it; latency between the extremes that FCC, Measuring Broadband America, finds for cable; jitter and loss chosen."""

DSL = LinkProfile(up_bps=5e6, down_bps=50e6, rtt_s=0.035, jitter_s=0.005, loss=0.001)
"""5 up, 50 down, 35 ms, 5 ms jitter, 0.1 % loss. VDSL2 (ITU-T G.993.2) over some hundred metres, with interleaving; latency as
FCC, Measuring Broadband America finds it for DSL; jitter and loss chosen."""

PROFILES = {
    "good": GOOD,
    "cellular": CELLULAR,
    "degraded": DEGRADED,
    "brownout": BROWNOUT,
    "straggler": STRAGGLER,
    "satellite": SATELLITE,
    "fibre": FIBRE,
    "cable": CABLE,
    "dsl": DSL,
}

FORM = (
    f"a profile ({', '.join(PROFILES)}), settings (up=20mbit, down=100mbit, rtt=50ms, jitter=5ms, loss=0.5%, place=1, "
    "inside=5ms, across=120ms, 1-2=90ms, bulk.loss=1%, control.delay=20ms), "
    "or a profile and settings that differ from it, separated by commas"
)

LANE_KEYS = ("up", "delay", "jitter", "loss")

_PAIR = re.compile(r"([0-9]{1,3})-([0-9]{1,3})")
_PARSERS = {
    "up": ("up_bps", parse_rate),
    "down": ("down_bps", parse_rate),
    "rtt": ("rtt_s", parse_duration),
    "jitter": ("jitter_s", parse_duration),
    "loss": ("loss", parse_share),
    "inside": ("inside_s", parse_duration),
    "across": ("across_s", parse_duration),
}


def parse_link(text: str) -> LinkProfile:
    """The link that `text` describes.

    Raises: UsageError, naming what is wrong and the allowed forms.
    """
    if len(text) > MAX_SPEC_CHARS:
        raise UsageError(f"link of {len(text)} characters, at most {MAX_SPEC_CHARS}")
    profile = LinkProfile()
    for position, word in enumerate(part.strip() for part in text.split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            if position or key not in PROFILES:
                raise UsageError(f"link {text!r}: {word!r} is not known; allowed is {FORM}")
            profile = PROFILES[key]
            continue
        try:
            profile = _with(profile, key, value)
        except UsageError as bad:
            raise UsageError(f"link {text!r}: {key}: {bad}") from bad
    return profile


def _with(profile: LinkProfile, key: str, value: str) -> LinkProfile:
    pair = _PAIR.fullmatch(key)
    if pair is not None:
        path = (_place(pair[1]), _place(pair[2]), parse_duration(value))
        return msgspec.structs.replace(profile, paths=(path, *profile.paths))
    lane, dot, rest = key.partition(".")
    if dot:
        return _with_lane(profile, lane, rest, value)
    if key == "place":
        return msgspec.structs.replace(profile, place=_place(value))
    if key not in _PARSERS:
        raise UsageError(f"nothing of this name can be set; allowed is {FORM}")
    field, parse = _PARSERS[key]
    number = parse(value)
    if field == "loss" and number > MAX_LOSS:
        raise UsageError(f"{value}, at most {MAX_LOSS:.0%}")
    return msgspec.structs.replace(profile, **{field: number})


def _with_lane(profile: LinkProfile, lane: str, key: str, value: str) -> LinkProfile:
    """Messages of one lane only: `bulk.up=5mbit`, `control.delay=20ms`."""
    if lane not in {known.lane for known in Priority} or key not in LANE_KEYS:
        raise UsageError(f"of the lanes control and bulk, {', '.join(LANE_KEYS)} can be set, such as bulk.loss=1%")
    lanes = dict(profile.lanes)
    before = lanes.get(lane, NO_LINK)
    if key == "delay":
        lanes[lane] = msgspec.structs.replace(before, rtt_s=2 * parse_duration(value))
    else:
        lanes[lane] = _with(before, key, value)
    return msgspec.structs.replace(profile, lanes=tuple(lanes.items()))


def _place(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_PLACES):
        raise UsageError(f"place {text!r}: a whole number from 1 to {MAX_PLACES}")
    return int(text)
