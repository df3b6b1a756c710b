"""Which member passes an update on to which others: one tree for each shard, from the shard's owner to all other members
that go first (core/contribution.py). The others get updates from the owner, as far as its upload has room.

Every member computes the same trees from the same announcements; nothing about them is sent. Where two views differ for a moment,
a member gets an update twice, or not at all and asks for it (deliveries.py).

A round sends one copy of each update to each member but its owner. These copies are shared out by upload:

    budget of a member   = copies of a round * its upload / uploads of all
    owner, per own shard = its budget / the shards that it owns, at least 1: it sends those itself
    the rest             = passed on by the members whose budgets are not used up

So a member that owns nothing sends as much as an owner, one of ten times the upload ten times as much, and an owner of everything
sends one copy of each shard. Members stand on a ring, each with an arc as long as what is left of its budget, and each shard
takes the next stretch of the ring. All shards together go around it `laps` times, so nobody's share is more than a copy off.
Where there are so few shards that each member would pass on one or two copies, they go around a part of it (`laps` < 1), and the
next version begins where this one ends: members take turns.

A hop costs HOP_S. So an owner sends whatever it gets out within HOP_S by itself, and small updates take no detour; others pass on
about MIN_FAN_OUT copies, or what they get out within HOP_S.

Never happens: a member has two parents, or none; a member is the child of one that it avoids, other than the owner; a member
that others cannot dial passes anything on, or is the child of another than the owner; one that does not go first passes anything
on (core/contribution.py), so that a crowd of newcomers delays nobody else.
"""

import hashlib
import heapq
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from weakref import WeakValueDictionary

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

FEW_RECEIVERS = 3  # the owner sends to them itself: a detour would save it one or two copies
MIN_FAN_OUT = 4  # fewer make trees deep, more make each hop long; 3 to 5 take about the same time
HOP_S = 0.05  # of one hop: delay, handling, a check of the bytes
GUESSED_BPS = 10e6  # where no member says what it can send
MAX_UPLOAD_FACTOR = 16.0  # of the median: an upload is a claim, and nobody should carry everything by one
MIN_LAPS = 0.75  # with fewer, members take turns
EPOCH_VERSIONS = 16  # of a shard, for which its tree stays as it is: connections are used again, and nobody is a leaf for long
MAX_TREES = 256  # that are remembered, of some 15 KiB each among 64 members: growing one takes a fraction of a millisecond


class Forwarder(msgspec.Struct, frozen=True):
    """A member of the region, as it counts for the trees."""

    peer: PeerId
    upload_bps: float = 0.0
    """Rounded by `upload_step`; 0: not known."""
    can_be_dialed: bool = True
    """By others than those that it has dialed itself, as far as known."""
    avoided: tuple[PeerId, ...] = ()
    """Members that failed to pass updates on to it: it is no child of theirs."""


class Tree(msgspec.Struct, frozen=True):
    """How one update travels."""

    owner: PeerId
    children: Mapping[PeerId, tuple[PeerId, ...]]
    """Of each member that sends, in the order of sending: those that pass it on themselves come first."""
    parents: Mapping[PeerId, PeerId]
    arrives_s: Mapping[PeerId, float]
    """Seconds after the owner has made it, by what all announce, if nothing else is sent."""

    def ancestors(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Its parent, the parent of that, and so on to the owner."""
        above = []
        while (parent := self.parents.get(peer)) is not None:
            above.append(parent)
            peer = parent
        return tuple(above)

    def passes_on(self, peer: PeerId) -> bool:
        return bool(self.children.get(peer))


def upload_step(upload_bps: float) -> float:
    """Rounded down to a power of two: a measurement that wavers should not change the trees."""
    return 2.0 ** math.floor(math.log2(upload_bps)) if upload_bps >= 1 else 0.0


def size_class(n_bytes: int) -> int:
    """Updates of about one size have the same trees: the least power of two that is not smaller."""
    return 1 << max(0, n_bytes - 1).bit_length()


class Forest:
    """The trees of all shards, for updates of one size class."""

    def __init__(
        self, members: Sequence[Forwarder], owners: Sequence[PeerId | None], n_bytes: int, first: Container[PeerId]
    ) -> None:
        """`members`: all that get updates, owners included. `owners`: of each shard. `n_bytes`: of an update. `first`: the
        members that go first (core/contribution.py)."""
        self._members = {m.peer: m for m in sorted(members, key=lambda m: m.peer)}
        self._owners = owners
        self._first = first
        self._n_receivers = max(0, len(members) - 1)
        self._upload = _uploads(list(self._members.values()))
        self._copy_s = {peer: 8 * max(1, n_bytes) / bps for peer, bps in self._upload.items()}
        self._trees: BoundedMap[tuple[int, int], Tree] = BoundedMap(MAX_TREES)
        self._n_undialed = sum(not m.can_be_dialed for m in members)
        self._n_avoiding = Counter(peer for m in members for peer in set(m.avoided))
        self._n_owned = Counter(owner for owner in owners if owner in self._members)
        self._share_out()

    def tree(self, shard: int, version: int) -> Tree | None:
        """How the update to this version travels; None where the shard has no owner that is a member."""
        owner = self._owners[shard]
        if owner is None or owner not in self._members:
            return None
        turn = version if self._moves_on else version // EPOCH_VERSIONS
        tree = self._trees.get((shard, turn))
        if tree is None:
            tree = self._trees[shard, turn] = self._grow(shard, owner, version)
        return tree

    @property
    def is_passed_on(self) -> bool:
        """Owners do not send everything themselves."""
        return any(n < self._n_receivers for n in self._direct.values())

    def copies_of(self, peer: PeerId) -> float:
        """How many updates this member sends in a round of all shards."""
        own = self._n_owned[peer] * self._direct.get(peer, 0)
        return own + self._arcs.get(peer, 0.0) * self._laps

    # inner steps

    def _share_out(self) -> None:
        """Who sends how many copies, and where each shard's stretch of the ring begins."""
        copies = self._n_receivers * sum(self._n_owned.values())
        total = math.fsum(self._upload.values())
        budget = {peer: copies * bps / total for peer, bps in self._upload.items()}
        self._direct = {owner: self._sent_by_owner(owner, budget[owner]) for owner in self._n_owned}
        spare = {
            peer: max(0.0, budget[peer] - self._n_owned[peer] * self._direct.get(peer, 0)) * self._trust(member)
            for peer, member in self._members.items()
            if member.can_be_dialed and peer in self._first
        }
        left = math.fsum(spare.values())
        if left <= 0:  # nobody can pass anything on
            self._direct = dict.fromkeys(self._direct, self._n_receivers)
        self._begins = [0]
        for owner in self._owners:
            n_relayed = self._n_receivers - self._direct[owner] if owner in self._direct else 0
            self._begins.append(self._begins[-1] + n_relayed)
        needed = self._begins[-1]
        full = {peer: needed * part / left for peer, part in spare.items() if part > 0} if left > 0 else {}
        typical = statistics.median(arc for arc in full.values() if arc >= needed / len(full) / 2) if needed else 0.0
        laps = typical / self._fan_out() if needed else 1.0
        self._laps = max(1, round(laps)) if laps > MIN_LAPS else laps
        self._moves_on = 0 if laps > MIN_LAPS else needed
        self._arcs = {peer: arc / self._laps for peer, arc in full.items()}

    def _sent_by_owner(self, owner: PeerId, budget: float) -> int:
        """Copies of each of its shards that an owner sends itself."""
        n_owned = self._n_owned[owner]
        n_others_undialed = self._n_undialed - (not self._members[owner].can_be_dialed)
        wanted = max(1, int(budget / n_owned), int(HOP_S / (self._copy_s[owner] * n_owned)))
        has_relayed = self._n_receivers > n_others_undialed
        wanted = max(wanted, n_others_undialed + has_relayed)
        return self._n_receivers if self._n_receivers <= FEW_RECEIVERS else min(wanted, self._n_receivers)

    def _trust(self, member: Forwarder) -> float:
        """The share of the others that take updates from it."""
        return 1 - self._n_avoiding[member.peer] / max(1, self._n_receivers)

    def _fan_out(self) -> float:
        typical = statistics.median(self._copy_s.values())
        return max(MIN_FAN_OUT, HOP_S / typical)

    def _grow(self, shard: int, owner: PeerId, version: int) -> Tree:
        epoch = version // EPOCH_VERSIONS
        capacity = self._capacities(shard, owner, version)
        relays = sorted(
            (peer for peer in capacity if peer != owner), key=lambda peer: (-self._upload[peer], _place(epoch, peer), peer)
        )
        others = [peer for peer in self._ring_order(epoch) if peer != owner and peer not in capacity]
        undialed = [peer for peer in others if not self._members[peer].can_be_dialed]
        leaves = sorted((peer for peer in others if self._members[peer].can_be_dialed), key=lambda peer: peer not in self._first)
        children: dict[PeerId, list[PeerId]] = {owner: []}
        parents: dict[PeerId, PeerId] = {}
        arrives: dict[PeerId, float] = {}
        free_at = {owner: 0.0}
        left = {owner: capacity[owner] - len(undialed)}
        slots = [(self._copy_s[owner], owner)] if left[owner] > 0 else []

        def attach(child: PeerId, parent: PeerId) -> None:
            free_at[parent] += self._copy_s[parent]
            children.setdefault(parent, []).append(child)
            parents[child] = parent
            arrives[child] = free_at[parent] + HOP_S

        waiting = [*relays, *leaves]
        while slots and waiting:
            _, parent = heapq.heappop(slots)
            child = next((peer for peer in waiting if parent == owner or parent not in self._members[peer].avoided), None)
            if child is None:
                continue  # all that are left avoid it
            waiting.remove(child)
            attach(child, parent)
            left[parent] -= 1
            if child in capacity:
                free_at[child], left[child] = arrives[child], capacity[child]
                heapq.heappush(slots, (free_at[child] + self._copy_s[child], child))
            if left[parent] > 0:
                heapq.heappush(slots, (free_at[parent] + self._copy_s[parent], parent))
        for peer in (*waiting, *undialed):
            attach(peer, owner)
        return Tree(owner, {peer: tuple(below) for peer, below in children.items()}, parents, arrives)

    def _capacities(self, shard: int, owner: PeerId, version: int) -> dict[PeerId, int]:
        """How many copies the owner and those that pass them on send."""
        direct = self._direct[owner]
        ring = self._ring_order(version // EPOCH_VERSIONS)
        bounds, end = [], 0.0
        for peer in ring:
            end += self._arcs.get(peer, 0.0)
            bounds.append(end)
        capacity = Counter({owner: direct})
        begin = self._begins[shard] + version * self._moves_on
        for copy in range(self._n_receivers - direct):
            at = (begin + copy + 0.5) % end
            capacity[ring[min(bisect_right(bounds, at), len(ring) - 1)]] += 1
        return dict(capacity)

    def _ring_order(self, epoch: int) -> list[PeerId]:
        return sorted(self._members, key=lambda peer: (_place(epoch, peer), peer))


_Grown = tuple[tuple[Forwarder, ...], tuple[PeerId | None, ...], int, frozenset[PeerId]]
_grown: WeakValueDictionary[_Grown, Forest] = WeakValueDictionary()


def forest_of(members: Iterable[Forwarder], owners: Sequence[PeerId | None], n_bytes: int, first: frozenset[PeerId]) -> Forest:
    """The `Forest` of these. Members in one process that see the same share one, and the trees in it."""
    key = tuple(sorted(members, key=lambda m: m.peer)), tuple(owners), n_bytes, first
    found = _grown.get(key)
    if found is None:
        found = _grown[key] = Forest(*key)
    return found


def _place(epoch: int, peer: PeerId) -> bytes:
    return hashlib.sha256(f"{epoch}\0{peer}".encode()).digest()[:8]


def _uploads(members: Sequence[Forwarder]) -> dict[PeerId, float]:
    """What each can send, as far as it is believed; where it says nothing, as much as the median of the others."""
    known = [m.upload_bps for m in members if m.upload_bps > 0]
    median = statistics.median(known) if known else GUESSED_BPS
    return {m.peer: min(m.upload_bps or median, MAX_UPLOAD_FACTOR * median) for m in members}
