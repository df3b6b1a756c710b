"""How often two regions sync a shard, and in which codec, by what the connection between their representatives carries.

    the densest of the run's codecs that takes at most SHARE of the time between two syncs, at the shortest interval
    none does -> the sparsest, and twice the interval, and again, up to the longest that the run allows

Both sides compute it from what both announce, so they agree except for what they measured themselves, and for how long their
rounds take: the side that waits longer is asked by the other, and answers.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from legion_p2p.core.adapt import KEEP, CodecCost
from legion_p2p.core.announcement import Announcement

SHARE = 0.25  # of the time in which a connection is busy with syncs: the rest belongs to the training of its own region


class Direction(msgspec.Struct, frozen=True):
    """One direction between two owners."""

    n_elements: float
    """Of all shards that the sender has to tell of between two syncs of one."""
    rate_bps: float | None
    """None: not known."""


class Interval(msgspec.Struct, frozen=True):
    every: int
    """Versions between two syncs of a shard: the run's least, times a power of two."""
    codec: str


def interval(
    codecs: Sequence[CodecCost], ways: Iterable[Direction], version_s: float | None, least: int, most: int, now: Interval
) -> Interval:
    """For versions of `version_s` seconds. `now` stays where nothing is known, and while a change would gain little."""
    per_bit_s = max((way.n_elements / way.rate_bps for way in ways if way.rate_bps), default=0.0)
    if not per_bit_s or version_s is None or not version_s > 0:
        return now
    dense_first = sorted(codecs, key=lambda cost: -cost.bits_per_element)
    at_least_as_good_as_now = False
    for every, cost in _from_best(dense_first, least, most):
        choice = Interval(every, cost.name)
        at_least_as_good_as_now |= choice == now
        busy_s = per_bit_s * cost.bits_per_element
        if busy_s * (1.0 if at_least_as_good_as_now else KEEP) <= SHARE * every * version_s:
            break
    return choice


def _from_best(dense_first: Sequence[CodecCost], least: int, most: int) -> Iterator[tuple[int, CodecCost]]:
    for cost in dense_first:
        yield least, cost
    every = 2 * least
    while every <= most:
        yield every, dense_first[-1]
        every *= 2


def rate_between(sender: Announcement, receiver: Announcement, *measured_bps: float | None) -> float | None:
    """Bits per second: the least of what both announce and what else was measured; None: nothing is known."""
    known = [bps for bps in (sender.upload_bps, receiver.download_bps, *measured_bps) if bps]
    return min(known, default=None)
