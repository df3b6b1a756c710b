"""Who goes first where there is not enough for all: those who have contributed to a shard for long.

Every state of a shard names the newest contribution of each member, so all who hold it know how often each has contributed: its
stake. Seniors are those with at least half of the greatest stake, but for a few rounds. First go the seniors, and half as many
others, those with the greatest stake: updates are sent to them before the rest, and rounds wait for them, for who is no senior
only a moment. The rest comes in as there is room. So a few who join are soon members like all others, and a crowd that joins
slows down nobody who trains.

Never happens: there are no seniors. A stake says nothing about a member's honesty: numbers can be made up, and all that is to be
had for that is to go first.
"""

from collections.abc import Iterable, Mapping

from legion_p2p.core.identity import PeerId

MAX_STAKE = 1000  # more makes nobody more senior: who came later has caught up after half as many rounds, not after years
FEW_ROUNDS = 4  # make nobody senior
MIN_JUNIORS = 2  # who go first as well, if there are any


def established(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> frozenset[PeerId]:
    """Of these members the seniors; `newest`: the number, from 0, of the newest contribution to that version of each that made
    one."""
    return frozenset(_by_stake(members, newest, version)[0])


def first(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> frozenset[PeerId]:
    """Of these members those who go first."""
    established, others = _by_stake(members, newest, version)
    return frozenset(established + others[: max(len(established) // 2, MIN_JUNIORS)])


def _by_stake(members: Iterable[PeerId], newest: Mapping[PeerId, int], version: int) -> tuple[list[PeerId], list[PeerId]]:
    """The seniors, and the others that have contributed, the greatest stake first."""
    # There are no more contributions than versions, whatever number somebody makes up.
    stakes = {peer: min(newest.get(peer, -1) + 1, version, MAX_STAKE) for peer in members}
    most = max(stakes.values(), default=0)
    established = [peer for peer, stake in stakes.items() if 2 * stake + FEW_ROUNDS >= most]
    others = [peer for peer, stake in stakes.items() if 0 < 2 * stake < most - FEW_ROUNDS]
    return established, sorted(others, key=lambda peer: (-stakes[peer], peer))
