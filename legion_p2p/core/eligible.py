"""Which members of a region own its shards, by how others reach them.

    class 0: those that others connect to directly, by dialing (public) or through a hole (punchable); those that insist (trainer)
    class 1: those of which it is not known
    class 2: those that only relays lead to

The first class that has a member owns, all of it. Where it is too weak to carry the shards alone, members of the next class are
added, one by one in an order that all compute alike, and then of the one after. So a relayed peer owns nothing while others are
enough, and everything works through relays where nobody can be reached in another way.

All of it follows from announcements, so all members come to the same owners. A member that comes or goes changes the eligibility
of others little: at the end of the list of those that were added.
"""

import math
from collections.abc import Iterable

import msgspec

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import Reach
from legion_p2p.core.rendezvous import ranking
from legion_p2p.core.roles import Role

NEEDED_SHARE = 1 / 8
"""Of the weight of all members: what owners must weigh together. An owner then carries at most eight times its fair share.
Higher: more shards are owned through relays, which carry each byte in and out again, and are limited."""


class Eligible(msgspec.Struct, frozen=True):
    """The members that may own, with their weights."""

    weights: dict[PeerId, float] = {}
    reserve: dict[PeerId, float] = {}
    """Where one member owns everything: those of which one stands by."""


def reach_class(announcement: Announcement) -> int:
    """How good an owner the member makes, by its reach; lower is better."""
    return (Reach.PUBLIC if announcement.role is Role.TRAINER else announcement.reach).rank


def eligible(
    run_id: str, region: str, announcements: Iterable[Announcement], juniors: frozenset[PeerId] = frozenset()
) -> Eligible:
    """Those that own the shards of `region`. `announcements`: of its members. `juniors`: own nothing where others can; where one
    member owns everything, one of them stands by."""
    able = [a for a in announcements if a.ready and a.weight > 0 and a.role is not Role.CLIENT]
    seniors = [a for a in able if a.peer_id not in juniors] if juniors else able
    if not seniors or len(seniors) == len(able):
        return _by_reach(run_id, region, able)
    found = _by_reach(run_id, region, seniors)
    if len(found.weights) > 1:
        return found
    rest = {a.peer_id: a.weight for a in able if a.peer_id in juniors}
    return Eligible(found.weights, found.reserve or rest)


def _by_reach(run_id: str, region: str, announcements: Iterable[Announcement]) -> Eligible:
    classes: dict[int, dict[PeerId, float]] = {}
    for a in announcements:
        classes.setdefault(reach_class(a), {})[a.peer_id] = a.weight
    if len(classes) <= 1:
        return Eligible(next(iter(classes.values()), {}))
    needed = NEEDED_SHARE * math.fsum(weight for members in classes.values() for weight in members.values())
    first, *others = (classes[number] for number in sorted(classes))
    chosen, weight = dict(first), math.fsum(first.values())  # fsum does not depend on the order, which differs from peer to peer
    for members in others:
        if weight >= needed:
            break
        for peer in ranking(f"legion/eligible/{run_id}/{region}", members):
            if weight >= needed:
                break
            chosen[peer] = members[peer]
            weight += members[peer]
    if len(chosen) > 1:
        return Eligible(chosen)
    return Eligible(chosen, {peer: weight for members in others for peer, weight in members.items() if peer not in chosen})
