"""Which blocks to ask of which peer: many providers at once, the rarest blocks first, none of them asked twice without need.

    WANTED -> ASKED (in `next_batch` of a peer that has it) -> HERE (`arrived`)
    ASKED  -> WANTED, when the peer did not send it (`lacks`) or is given up (`drop`)

Never happens: a block is asked of two peers at once, or of one that said that it lacks it, or of one that was dropped.
"""

from collections import Counter, deque
from collections.abc import Iterable

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import PeerId


class Download:
    """The books of one download."""

    def __init__(self, wanted: Iterable[Cid]) -> None:
        self._wanted = set(wanted)
        self._asked: dict[Cid, PeerId] = {}
        self._has: dict[PeerId, set[Cid]] = {}
        self._dropped: set[PeerId] = set()
        self._orders: dict[PeerId, deque[Cid]] = {}
        """What each peer has, the rarest first; computed again when an offer changes."""

    @property
    def done(self) -> bool:
        return not self._wanted

    def missing(self) -> frozenset[Cid]:
        """What is not here yet."""
        return frozenset(self._wanted)

    def unobtainable(self) -> frozenset[Cid]:
        """What none of the peers that are left has."""
        return frozenset(self._wanted.difference(*self._has.values()))

    def offers(self, peer: PeerId, cids: Iterable[Cid]) -> None:
        """`peer` has these."""
        if peer not in self._dropped:
            self._has.setdefault(peer, set()).update(cids)
            self._orders.clear()

    def next_batch(self, peer: PeerId, n: int) -> tuple[Cid, ...]:
        """Up to `n` blocks to ask of `peer` now; empty, if it has nothing that is wanted and not being asked of others."""
        if not self._orders:
            self._sort()
        order = self._orders.get(peer, deque())
        batch: list[Cid] = []
        later: list[Cid] = []
        while order and len(batch) < n:
            cid = order.popleft()
            if cid in self._asked:
                later.append(cid)  # the peer that is asked now may fail
            elif cid in self._wanted:
                self._asked[cid] = peer
                batch.append(cid)
        order.extend(later)
        return tuple(batch)

    def arrived(self, cid: Cid) -> None:
        self._wanted.discard(cid)
        self._asked.pop(cid, None)

    def providers(self) -> tuple[PeerId, ...]:
        """The peers that have anything."""
        return tuple(sorted(self._has))

    def release(self, peer: PeerId, cids: Iterable[Cid]) -> None:
        """The request to `peer` for these failed: it, or another peer, may be asked again."""
        for cid in cids:
            if self._asked.get(cid) == peer:
                del self._asked[cid]
        self._orders.clear()

    def lacks(self, peer: PeerId, cids: Iterable[Cid]) -> None:
        """`peer` was asked for these and did not send them."""
        cids = tuple(cids)
        self._has.get(peer, set()).difference_update(cids)
        self.release(peer, cids)

    def drop(self, peer: PeerId) -> None:
        """Ask `peer` for nothing any more."""
        self._dropped.add(peer)
        self.lacks(peer, [cid for cid, asked in self._asked.items() if asked == peer])
        self._has.pop(peer, None)

    def _sort(self) -> None:
        rarity = Counter(cid for has in self._has.values() for cid in has if cid in self._wanted)
        for peer, has in self._has.items():
            self._orders[peer] = deque(sorted((cid for cid in has if cid in rarity), key=lambda cid: (rarity[cid], cid)))
