"""Which versions of a shard are believed: those of its owner, those that most members hold, and whole shards that may be."""

from collections.abc import Sequence
from enum import Enum

from legion_p2p.core.announcement import Mark
from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership

MAX_VERSION_JUMP = 1 << 24  # half a year of a version a second: a peer that claims more would soon have used up all numbers


def may_make(me: PeerId, peer: PeerId, owners: Ownership, made_by: PeerId | None, owner_is_alive: bool) -> bool:
    """Whether versions that `peer` made are to be followed: it owns the shard, or made the version that is held (`made_by`), or
    stands by for an owner that is silent.

    Views differ for seconds: a peer that is refused wrongly is followed once we see what it saw.
    """
    if peer in (me, owners.owner, made_by):
        return True
    if peer != owners.standby or owners.owner is None or owners.owner == me:
        return False
    return not owner_is_alive


def most_hold(mark: Mark | None, marks: Sequence[Mark | None]) -> bool:
    """Whether more than half of the others announce this state. `marks`: of all others, the one in question included."""
    return mark is not None and 2 * marks.count(mark) > len(marks)


def is_behind_most(chain: Chain, marks: Sequence[Mark | None]) -> bool:
    """Whether more than half of the others announce a newer version. `marks`: of all others but the owner."""
    return 2 * sum(mark is not None and mark.version > chain.version for mark in marks) > len(marks)


def have_reached(mark: Mark, marks: Sequence[Mark | None]) -> bool:
    """Whether more than half of the others hold this state, or a newer version than its. `marks`: of all others but the owner."""
    return 2 * sum(m is not None and (m.version > mark.version or m == mark) for m in marks) > len(marks)


def differs_from_most(chain: Chain, marks: Sequence[Mark | None]) -> bool:
    """Whether half of the others or more announce what this peer does not hold, so that it cannot judge what the owner made.

    `marks`: of all others but the owner. Without any, the answer is yes.
    """
    n_other = sum(mark is not None and (mark.version > chain.version or chain.holds(mark) is False) for mark in marks)
    return 2 * n_other >= len(marks)


def outvoted_by(chain: Chain, marks: Sequence[Mark | None]) -> Mark | None:
    """What more than half of the others hold, where this chain is another one. `marks`: of all others."""
    for mark in set(marks):
        if mark is not None and most_hold(mark, marks):
            return mark if chain.holds(mark) is False else None
    return None


class Adoption(Enum):
    """What to do with a whole shard that a peer sent."""

    IMPOSSIBLE = "impossible"
    """No honest peer is at such a version."""
    OURS_PREVAILS = "ours prevails"
    """Two chains, and this peer owns the shard."""
    KNOWN = "known"
    """What came meanwhile is as new, or newer."""
    TAKE = "take"
    MERGE = "merge"
    """Take it, and push again what this peer alone had made of its own."""


def judge_whole(chain: Chain, version: int, digest: bytes, *, is_ancestor: bool, owns: bool, made_tokens: int) -> Adoption:
    """`is_ancestor`: our state lies in the history of theirs. `made_tokens`: of the versions that this peer made itself since it
    last followed another."""
    if version > chain.version + MAX_VERSION_JUMP:
        return Adoption.IMPOSSIBLE
    if owns and not is_ancestor:
        return Adoption.OURS_PREVAILS
    if chain.passed(version, digest):
        return Adoption.KNOWN
    return Adoption.MERGE if made_tokens > 0 and not is_ancestor else Adoption.TAKE
