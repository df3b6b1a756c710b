"""Owning takes time: which members may own, and by what shards are dealt out, in a run whose specification says `owner_rounds`.

Identities cost nothing. So a member may own only when its pushes have been in so many versions of most shards. How many versions
contain a push of a member is in the header of every update, and goes up by one each time: everybody that follows the shard has
seen it, and no number of the member's own has a part in it. Where nobody is old enough, all may own, as at the beginning.

Keys can be made until one comes first for a given shard. So the hash of rendezvous has a salt: the start of the shard's digest as
it was some versions ago, which is another one after each `owner_rounds` versions. Nobody knows it before, and a key that was made
for the present one is worth nothing by the time that its member may own, once a run has made twice as many versions.

Never happens: a member becomes old enough faster than the shard makes versions; two members that hold one version of a shard have
different salts of it.
"""

from collections.abc import Iterable

SALT_BYTES = 8  # an owner that tries variants of its update to keep its shard has to find one of n members, not a whole digest
PART = 2  # of the versions so far: what is asked in a young run; members that are slow from the start may own later


def needed(owner_rounds: int, version: int) -> int:
    """In how many versions of a shard a member's pushes must have been."""
    return min(owner_rounds, version // PART)


def is_senior(rounds: Iterable[tuple[int, int]], owner_rounds: int) -> bool:
    """Whether a member may own. `rounds`: of each shard in how many versions its pushes were, and how many there are."""
    old_enough = [n >= needed(owner_rounds, version) for n, version in rounds]
    return 2 * sum(old_enough) >= len(old_enough)


def salt_after(version: int, digest: bytes, salt: bytes, owner_rounds: int) -> bytes:
    """What the next version has. `version`, `digest`, `salt`: of the one before."""
    return digest[:SALT_BYTES] if owner_rounds and (version + 1) % owner_rounds == 0 else salt
