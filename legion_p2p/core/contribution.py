"""Which members go first where there is not enough for all: those that have contributed to a shard for long.

Every state of a shard names the newest contribution of each member, so all that hold it know how often each has contributed.
Established members have made at least half as many contributions as the one with the most, less a few rounds. They go first, and
with them half as many others, those with the most contributions: updates are sent to them before the rest, and rounds wait for
them, for those that are not established only a moment. The rest comes in as there is room. So a few newcomers are soon members
like all others, and a crowd of newcomers slows down nobody that trains.

Never happens: no member is established. The number of contributions says nothing about a member's honesty: numbers can be made
up, and all that this gains is to go first.
"""

from collections.abc import Iterable, Mapping

from legion_p2p.core.identity import PeerId

MAX_CONTRIBUTIONS = 1000  # more do not count: a member that came later has caught up after half as many rounds, not after years
FEW_ROUNDS = 4  # of difference do not count
MIN_NEWCOMERS = 2  # that go first as well, if there are any


def established(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> frozenset[PeerId]:
    """Of these members those that are established; `newest`: the number, from 0, of the newest contribution to that version of
    each that made one."""
    return frozenset(_by_contributions(members, newest, version)[0])


def first(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> frozenset[PeerId]:
    """Of these members those that go first."""
    established, others = _by_contributions(members, newest, version)
    return frozenset(established + others[: max(len(established) // 2, MIN_NEWCOMERS)])


def _by_contributions(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> tuple[list[PeerId], list[PeerId]]:
    """The established members, and the others that have contributed, those with the most contributions first."""
    # There are no more contributions than versions, whatever number somebody makes up.
    limit, number = min(version, MAX_CONTRIBUTIONS), newest.get
    made = {peer: n if (n := number(peer, -1) + 1) < limit else limit for peer in members}
    most = max(made.values(), default=0)
    established = [peer for peer, n in made.items() if 2 * n + FEW_ROUNDS >= most]
    others = [peer for peer, n in made.items() if 0 < 2 * n < most - FEW_ROUNDS]
    return established, sorted(others, key=lambda peer: (-made[peer], peer))
