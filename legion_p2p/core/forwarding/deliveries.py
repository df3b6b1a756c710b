"""When the updates that a member was told of should be here, and which members fail to pass updates on.

An owner tells all members when it has made an update that others pass on. The tree says when it should be here.

    told      -> here                    a member sent it: how long that took teaches how long to wait (as TCP does: RFC 6298)
    told      -> overdue                 overdue.py says what follows; the next update may take twice as long
    overdue   -> here, from the parent   it was only slow
    overdue   -> told of the next one    the parent missed one; after MAX_MISSES with nothing from it in between it is avoided
    the bytes are not those of the owner the member that sent them is avoided at once

A member announces whom it avoids, and nobody makes it a child of those. So nobody can speak for others, and an avoided member
loses only its own say in how their updates travel.

Never happens: a parent that was only slow is avoided; a parent is blamed for what came from another member in time.
"""

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.claims import TimedClaims
from legion_p2p.core.forwarding.forest import HOP_S, Tree
from legion_p2p.core.forwarding.overdue import Promise
from legion_p2p.core.identity import PeerId

MAX_MISSES = 2  # one may be a difference of views
MAX_AHEAD = 1024  # versions by which what is sent may be ahead of what is told; a made-up number must not end the telling
MAX_SUSPECTS = 256  # parents whose misses are counted: more than a region has members
FIRST_FACTOR = 4.0  # of the time that the tree should need, while nothing was measured
MIN_FACTOR, MAX_FACTOR = 1.5, 20.0
MIN_WAIT_S = 0.25  # what a busy machine may need for anything
GAIN, GAIN_OF_SPREAD, SPREADS = 1 / 8, 1 / 4, 4.0  # RFC 6298


class Patience:
    """How much longer than they should need updates take."""

    def __init__(self) -> None:
        self._factor: float | None = None
        self._spread = 0.0
        self._backoff = 1.0

    def wait_s(self, expected_s: float) -> float:
        """How long to wait for what should take `expected_s`."""
        factor = self._backoff * (FIRST_FACTOR if self._factor is None else self._factor + SPREADS * self._spread)
        return MIN_WAIT_S + max(expected_s, HOP_S) * min(max(factor, MIN_FACTOR), MAX_FACTOR)

    def late(self) -> None:
        """Something did not come in time: wait longer, until something does come."""
        self._backoff = min(2 * self._backoff, MAX_FACTOR)

    def took(self, expected_s: float, took_s: float) -> None:
        """It took this long."""
        self._backoff = 1.0
        factor = min(took_s / max(expected_s, HOP_S), MAX_FACTOR)
        if self._factor is None:
            self._factor, self._spread = factor, factor / 2
            return
        self._spread += GAIN_OF_SPREAD * (abs(factor - self._factor) - self._spread)
        self._factor += GAIN * (factor - self._factor)


class _Expectation(msgspec.Struct):
    promise: Promise
    tree: Tree
    parent: PeerId
    told_at: float
    expected_s: float
    is_here: bool = False


class Deliveries:
    """What one member was told of, and by whom it came."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._patience = Patience()
        self._awaited: dict[int, _Expectation] = {}
        self._newest: dict[int, int] = {}
        """Of each shard: the newest version that somebody sent."""
        self._misses: BoundedMap[PeerId, int] = BoundedMap(MAX_SUSPECTS)
        self._avoided = TimedClaims()
        self._failed: list[PeerId] = []

    def told(self, shard: int, version: int, tree: Tree, now: float) -> Promise | None:
        """The owner has made an update, which travels along `tree`; what to do about it, unless it is here.

        `shard` must exist: what is awaited is kept by shard.
        """
        if version <= self._newest.get(shard, -1) < version + MAX_AHEAD or self._me not in tree.parents:
            return None
        self._settle(shard, now)
        parent, *above = tree.ancestors(self._me)
        expected_s = tree.arrives_s[self._me]
        wait_s = self._patience.wait_s(expected_s)
        promise = Promise(version, now + wait_s, parent, tuple(above) or (parent,), wait_s)
        self._awaited[shard] = _Expectation(promise, tree, parent, now, expected_s)
        return promise

    def tree_of(self, shard: int, version: int) -> Tree | None:
        """The tree of an update that was promised and is not here; None: there is none."""
        awaited = self._awaited.get(shard)
        return awaited.tree if awaited is not None and awaited.promise.version == version and not awaited.is_here else None

    def arrived(self, shard: int, version: int, sender: PeerId, now: float) -> None:
        """Somebody sent an update, unasked."""
        newest = self._newest.get(shard, -1)
        self._newest[shard] = version if newest >= version + MAX_AHEAD else max(version, newest)
        self._misses.pop(sender, None)
        awaited = self._awaited.get(shard)
        if awaited is not None and awaited.promise.version == version and not awaited.is_here:
            self._patience.took(awaited.expected_s, now - awaited.told_at)
            awaited.is_here = True

    def overdue(self) -> None:
        """An update does not come when it should."""
        self._patience.late()

    def altered(self, shard: int, sender: PeerId, now: float) -> Promise | None:
        """What `sender` sent is not what the owner made; the update of the shard that should come from it, if there is one."""
        self._avoid(sender, now)
        awaited = self._awaited.get(shard)
        if awaited is None or awaited.is_here or awaited.parent != sender:
            return None
        return awaited.promise

    def poll_failed(self) -> PeerId | None:
        """A member that is avoided from now on, and was not before; each is told once."""
        return self._failed.pop() if self._failed else None

    def avoided(self, now: float) -> tuple[PeerId, ...]:
        """Those to announce now, by peer id."""
        return self._avoided.named(now)

    def _settle(self, shard: int, now: float) -> None:
        """The last update of the shard is over."""
        awaited = self._awaited.pop(shard, None)
        if awaited is None or awaited.is_here or now < awaited.promise.until:
            return
        misses = self._misses.get(awaited.parent, 0) + 1
        self._misses[awaited.parent] = misses
        if misses >= MAX_MISSES and awaited.parent != awaited.tree.owner:
            self._avoid(awaited.parent, now)

    def _avoid(self, peer: PeerId, now: float) -> None:
        if self._avoided.found(peer, now):
            self._failed.append(peer)
