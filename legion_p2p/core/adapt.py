"""How much a peer sends, by what its connection carries: which of the run's codecs, and how many local steps.

    bits a round = pushes of what others own + updates of what this peer owns, to every other member
                   (or, where members pass updates on, those that this peer sends, of any owner: core/forwarding)
    the best codecs are taken whose bits fit into SHARE of a round; where none do, the sparsest, and rounds become longer

Of two pairs of codecs that one is better whose sparser half is denser: a model learns no more from a dense update of pushes that
left nearly everything out, nor from dense pushes whose mean is then thinned out (docs/records/demo.md). Of equal ones the denser
pushes count, because each is one member's only word, while an update is the mean of all.

Only codecs that the run allows, and no more local steps than it allows: what does not fit then is late, and late is not lost. A
limit that the user set counts like a connection of that rate, so adapting never fights it.
"""

import math
from collections.abc import Sequence

import msgspec

SHARE = 0.5  # of a round's time for sending: the rest is room for answers, other traffic and what was measured wrongly
KEEP = 1.25  # a denser codec must fit with this much to spare before it replaces a sparser one: no flapping
JOINING = 4  # recipients for which a member that joins counts: it fetches the model over the same connection


class CodecCost(msgspec.Struct, frozen=True):
    """A codec that the run allows, and what it costs."""

    name: str
    bits_per_element: float


class Load(msgspec.Struct, frozen=True):
    """What this peer has to send in one round."""

    push_elements: int
    """Of the shards that others own."""
    update_elements: int
    """Of the shards of which it sends updates, times the members that it sends them to."""


class Choice(msgspec.Struct, frozen=True):
    push_codec: str
    update_codec: str
    stretch: float = 1.0
    """Factor on local steps, at least 1."""


def choose(
    pushes: Sequence[CodecCost],
    updates: Sequence[CodecCost],
    load: Load,
    round_s: float,
    upload_bps: float | None,
    now: Choice,
    max_stretch: float = 1.0,
) -> Choice:
    """The codecs and the stretch for a round of `round_s` seconds of local steps over `upload_bps` (None: not known).

    `now` is the present choice; it stays where nothing is known, and while a change would gain little.
    """
    if upload_bps is None or not round_s > 0 or load.push_elements + load.update_elements == 0:
        return now
    budget = SHARE * upload_bps * round_s
    pairs = [(_bits(load, push, update), push, update) for push in pushes for update in updates]
    present = next((bits for bits, p, u in pairs if (p.name, u.name) == (now.push_codec, now.update_codec)), math.inf)
    for bits, push, update in sorted(pairs, key=lambda pair: _quality(pair[1], pair[2]), reverse=True):
        if bits <= (budget if bits <= present else budget / KEEP):
            return Choice(push.name, update.name)
    bits, push, update = min(pairs, key=lambda pair: (pair[0], *_quality(pair[1], pair[2])))
    return Choice(push.name, update.name, min(max(1.0, bits / budget), max_stretch))


def _quality(push: CodecCost, update: CodecCost) -> tuple[float, float, float]:
    return min(push.bits_per_element, update.bits_per_element), push.bits_per_element, update.bits_per_element


def recipients(n_first: int, n_ready: int, n_joining: int) -> int:
    """For how many members the updates of a shard count, of which the first ones get them at once.

    Where nobody goes first, one of the others counts all the same. A peer that made versions faster than anybody can follow would
    have to give whole shards to each newcomer, and again as soon as they have arrived.
    """
    return max(n_first, 1 if n_ready else JOINING if n_joining else 0)


def _bits(load: Load, push: CodecCost, update: CodecCost) -> float:
    return load.push_elements * push.bits_per_element + load.update_elements * update.bits_per_element
