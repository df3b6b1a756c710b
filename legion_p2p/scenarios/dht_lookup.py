"""Lookups in a modelled DHT, many at a time: as `net.dht.Dht.lookup` asks its way, from answer to answer.

Of each lookup at most ALPHA questions are under way; an answer takes a round trip, and a dead node holds its place until
TIMEOUT_S. It ends when the nodes closest to the key that are not known to be dead have answered, or at BUDGET_S.

Shapes: L = lookups, C = candidates of each, K = nodes that an answer names, Q = questions of all lookups at one moment.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from legion_p2p.scenarios.dht_nodes import FAR, NOBODY, DhtNodes, Flags, Ints, K, Places, Rows, Times

ALPHA = 4
TIMEOUT_S = 6.0
BUDGET_S = 8.0
MAX_CANDIDATES = 3 * K
TOGETHER = 4096  # lookups: their tables take some 20 MB

Provides = Callable[[Rows, Ints], Flags]
"""Of lookups (by their indices) and nodes that they ask: whether the node names a living provider of what the lookup is for."""


@dataclass(frozen=True)
class LookedUp:
    """What lookups came to. Arrays have a row for each."""

    closest: Ints
    """The closest nodes that answered, the closest first; filled up with NOBODY."""
    n_questions: Rows
    took_s: Times
    hops: Rows
    """Where something was sought: how many answers led to the first node that named a living provider, with its own; 0: none
    did. Otherwise of the closest node."""


def look_up(
    nodes: DhtNodes, rows_L: Rows, places_L: Places, n_closest: int, now: float, rtt_s: float, provides: Provides | None = None
) -> LookedUp:
    """Look these places up, each from a row. `provides`: seek providers, and ask K nodes until one is named."""
    parts = [
        _Lookups(nodes, rows_L[at : at + TOGETHER], places_L[at : at + TOGETHER], n_closest).run(
            now, rtt_s, None if provides is None else _shifted(provides, at)
        )
        for at in range(0, len(rows_L), TOGETHER)
    ]
    return LookedUp(*(np.concatenate([getattr(part, name) for part in parts]) for name in LookedUp.__annotations__))


def _shifted(provides: Provides, start: int) -> Provides:
    return lambda lookups, numbers: provides(lookups + start, numbers)


class _Lookups:
    """Lookups that go on together."""

    def __init__(self, nodes: DhtNodes, rows_L: Rows, places_L: Places, n_closest: int) -> None:
        n = len(rows_L)
        self._nodes = nodes
        self._rows_L = rows_L
        self._places_L = places_L
        self._n_closest = n_closest
        self._candidate_LC: Ints = np.full((n, MAX_CANDIDATES), NOBODY, dtype=np.int32)
        self._candidate_LC[:, :K] = nodes.closest(rows_L, places_L)
        self._asked_LC = np.zeros((n, MAX_CANDIDATES), dtype=bool)
        self._answered_LC = np.zeros((n, MAX_CANDIDATES), dtype=bool)
        self._depth_LC = np.ones((n, MAX_CANDIDATES), dtype=np.int32)
        self._n_hung_L = np.zeros(n, dtype=np.int64)
        self._hung_since_L: Times = np.zeros(n)
        self._n_questions_L: Rows = np.zeros(n, dtype=np.int64)
        self._took_L: Times = np.zeros(n)
        self._hops_L: Rows = np.zeros(n, dtype=np.int64)

    def run(self, now: float, rtt_s: float, provides: Provides | None) -> LookedUp:
        goes_on_L = np.ones(len(self._rows_L), dtype=bool)
        while goes_on_L.any():
            picked_LC = self._picked(provides is not None) & goes_on_L[:, None]
            asks_L = picked_LC.any(axis=1)
            hangs_L = goes_on_L & ~asks_L & (self._n_hung_L > 0)
            goes_on_L &= asks_L | hangs_L
            self._took_L[hangs_L] = np.maximum(self._took_L[hangs_L], self._hung_since_L[hangs_L] + TIMEOUT_S)
            self._n_hung_L[hangs_L | (self._took_L >= self._hung_since_L + TIMEOUT_S)] = 0
            if asks_L.any():
                self._ask(picked_LC, now, provides)
            self._took_L[asks_L] += rtt_s
            goes_on_L &= self._took_L < BUDGET_S
        order_LC = np.argsort(~self._answered_LC, axis=1, kind="stable")[:, : self._n_closest]
        closest_LC = np.take_along_axis(self._candidate_LC, order_LC, axis=1)
        has_LC = np.take_along_axis(self._answered_LC, order_LC, axis=1)
        if provides is None:
            self._hops_L = np.where(has_LC[:, 0], np.take_along_axis(self._depth_LC, order_LC[:, :1], axis=1)[:, 0], 0)
        return LookedUp(np.where(has_LC, closest_LC, NOBODY), self._n_questions_L, self._took_L, self._hops_L)

    def _picked(self, seeks: bool) -> Flags:
        """The candidates that are asked now."""
        n_wanted = np.where(self._hops_L > 0, ALPHA, K)[:, None] if seeks else self._n_closest
        counts_LC = (self._candidate_LC != NOBODY) & (~self._asked_LC | self._answered_LC)
        waits_LC = counts_LC & (np.cumsum(counts_LC, axis=1) <= n_wanted) & ~self._asked_LC
        picked: Flags = waits_LC & (np.cumsum(waits_LC, axis=1) <= (ALPHA - self._n_hung_L)[:, None])
        return picked

    def _ask(self, picked_LC: Flags, now: float, provides: Provides | None) -> None:
        nodes = self._nodes
        self._asked_LC |= picked_LC
        self._n_questions_L += picked_LC.sum(axis=1)
        lookup_Q, place_Q = np.nonzero(picked_LC)
        number_Q = self._candidate_LC[lookup_Q, place_Q]
        lives_Q = nodes.lives(number_Q)
        self._note_dead(lookup_Q[~lives_Q], number_Q[~lives_Q], now)
        lookup_Q, place_Q, number_Q = lookup_Q[lives_Q], place_Q[lives_Q], number_Q[lives_Q]
        self._answered_LC[lookup_Q, place_Q] = True
        asker_Q, asked_Q = self._rows_L[lookup_Q], nodes.row_U[number_Q]
        nodes.learn(asked_Q, nodes.number_N[asker_Q])
        named_QK = nodes.closest(asked_Q, self._places_L[lookup_Q], but_Q=nodes.number_N[asker_Q])
        named_QK[nodes.is_down(asker_Q, named_QK, now)] = NOBODY
        nodes.learn(asker_Q, number_Q)
        self._learn_by_hearsay(asker_Q, named_QK, now)
        if provides is not None:
            names_one_Q = provides(lookup_Q, number_Q)
            is_first_Q = names_one_Q & (self._hops_L[lookup_Q] == 0)
            found_Q, depth_Q = lookup_Q[is_first_Q], self._depth_LC[lookup_Q, place_Q][is_first_Q]
            order = np.argsort(-depth_Q, kind="stable")  # of several that come together the nearest counts
            self._hops_L[found_Q[order]] = depth_Q[order]
        self._take_in(lookup_Q, place_Q, named_QK)

    def _note_dead(self, lookup_Q: Rows, number_Q: Ints, now: float) -> None:
        while len(lookup_Q):  # one of each lookup at a time
            _, first = np.unique(lookup_Q, return_index=True)
            hung_L, starts = lookup_Q[first], self._n_hung_L[lookup_Q[first]] == 0
            self._hung_since_L[hung_L[starts]] = self._took_L[hung_L[starts]]
            self._n_hung_L[hung_L] += 1
            rows, unique = np.unique(self._rows_L[hung_L], return_index=True)
            self._nodes.fail(rows, number_Q[first][unique], now)
            rest = np.ones(len(lookup_Q), dtype=bool)
            rest[first] = False
            lookup_Q, number_Q = lookup_Q[rest], number_Q[rest]

    def _learn_by_hearsay(self, asker_Q: Rows, named_QK: Ints, now: float) -> None:
        """While a table is small, those that are named go into it without having been asked."""
        nodes = self._nodes
        left = np.nonzero(nodes.n_known_N[asker_Q] < K)[0]
        while len(left):  # one answer to each asker at a time
            _, first = np.unique(asker_Q[left], return_index=True)
            askers, named_AK = asker_Q[left[first]], named_QK[left[first]]
            is_new_AK = (named_AK != NOBODY) & ~nodes.knows(askers, named_AK)
            size_AK = nodes.n_known_N[askers, None] + np.cumsum(is_new_AK, axis=1) - is_new_AK
            is_taken_AK = (named_AK != NOBODY) & (size_AK < K)
            nodes.learn(np.repeat(askers, K)[is_taken_AK.ravel()], named_AK[is_taken_AK], now)
            left = np.delete(left, first)
            left = left[nodes.n_known_N[asker_Q[left]] < K]

    def _take_in(self, lookup_Q: Rows, place_Q: Rows, named_QK: Ints) -> None:
        """Those that were named are candidates as well; the closest stay."""
        lookups = np.unique(lookup_Q)
        if not len(lookups):
            return
        nth_Q = np.arange(len(lookup_Q)) - np.searchsorted(lookup_Q, lookup_Q)  # lookup_Q is sorted
        at_Q = np.searchsorted(lookups, lookup_Q)
        named_LW = np.full((len(lookups), ALPHA, K), NOBODY, dtype=np.int32)
        named_LW[at_Q, nth_Q] = named_QK
        depth_LW = np.zeros((len(lookups), ALPHA, K), dtype=np.int32)
        depth_LW[at_Q, nth_Q] = self._depth_LC[lookup_Q, place_Q][:, None] + 1
        candidate = np.concatenate([self._candidate_LC[lookups], named_LW.reshape(len(lookups), -1)], axis=1)
        depth = np.concatenate([self._depth_LC[lookups], depth_LW.reshape(len(lookups), -1)], axis=1)
        unasked = np.zeros((len(lookups), ALPHA * K), dtype=bool)
        asked = np.concatenate([self._asked_LC[lookups], unasked], axis=1)
        answered = np.concatenate([self._answered_LC[lookups], unasked], axis=1)
        distance = self._nodes.place_U[candidate] ^ self._places_L[lookups, None]
        distance[candidate == NOBODY] = FAR
        order = np.argsort(distance, axis=1, kind="stable")  # of two that are the same, the one that was there comes first
        candidate, distance = (np.take_along_axis(x, order, axis=1) for x in (candidate, distance))
        again = np.zeros_like(asked)
        again[:, 1:] = candidate[:, 1:] == candidate[:, :-1]
        distance[again] = FAR
        last = np.argsort(distance, axis=1, kind="stable")[:, :MAX_CANDIDATES]
        kept = np.take_along_axis(order, last, axis=1)
        is_kept = np.take_along_axis(distance, last, axis=1) != FAR
        self._candidate_LC[lookups] = np.where(is_kept, np.take_along_axis(candidate, last, axis=1), NOBODY)
        for mine, new in ((self._depth_LC, depth), (self._asked_LC, asked), (self._answered_LC, answered)):
            mine[lookups] = np.take_along_axis(new, kept, axis=1)
        self._asked_LC[lookups] &= is_kept
        self._answered_LC[lookups] &= is_kept
