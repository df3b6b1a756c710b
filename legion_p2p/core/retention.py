"""Retention: which checkpoints of a run to keep. The last few, and one of every span of steps."""

import re
from collections.abc import Mapping

import msgspec

from legion_p2p.core.cids import Cid
from legion_p2p.errors import ConfigError

MAX_KEPT = 10_000


class Retention(msgspec.Struct, frozen=True):
    """A policy, written as `last=3,every=100`; either may be left out, and 0 keeps none by that rule."""

    last: int = 0
    """How many of the newest."""
    every: int = 0
    """The oldest of each span of this many steps, back to the beginning of the run."""


def parse_retention(text: str) -> Retention:
    """Raises: ConfigError, also where it would keep nothing."""
    fields: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        found = re.fullmatch(r"(last|every)=([0-9]{1,9})", part)
        if found is None or found[1] in fields:
            raise ConfigError(f"{text[:60]!r} is no policy of what to keep; the form is last=3,every=100")
        fields[found[1]] = int(found[2])
    keep = Retention(**fields)
    if keep.last > MAX_KEPT:
        raise ConfigError(f"last={keep.last}, at most {MAX_KEPT}")
    if not keep.last and not keep.every:
        raise ConfigError(f"{text[:60]!r} would keep nothing: say last=1 at least")
    return keep


def kept(steps: Mapping[Cid, int], keep: Retention) -> set[Cid]:
    """Of the checkpoints of one run, with their steps, those that stay. The newest one always does."""
    newest_first = sorted(steps, key=lambda cid: (-steps[cid], cid))
    stay = set(newest_first[: max(1, keep.last)])
    if keep.every:
        oldest = {steps[cid] // keep.every: cid for cid in newest_first}
        stay.update(oldest.values())
    return stay
