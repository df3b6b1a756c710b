"""The DHT alone, with a hundred thousand nodes: they come and go, look around, announce what they provide, and seek.

It follows net/dht.py and net/discovery.py in what a lookup asks and when one is made, and leaves out all that is no question of
who knows whom: addresses, NATs, links, and peers of a run that know each other without the DHT.
"""

import math
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from legion_p2p.errors import UsageError
from legion_p2p.scenarios.dht_lookup import ALPHA, LookedUp, look_up
from legion_p2p.scenarios.dht_nodes import NOBODY, DhtNodes, Flags, Ints, K, Rows, Times

TICK_S = 5.0  # what is due within this time happens together
SWEEP_S = 60.0  # between two looks for nodes that have been dead for long
N_ENTRIES = 2  # nodes that a newcomer knows
REPLICATION = 8
FRESH_TARGETS_S = 60.0  # between two lookups of where a key is to be announced
RECORD_S = 60.0  # after the last announcement, until a record is forgotten
LONGEST_LOOK_S = 300.0  # between two lookups of oneself; they begin at FIRST_LOOK_S, and each pause is twice the last
FIRST_LOOK_S = 1.0
SHORTEST = 0.5  # share of a pause that is waited for at least, so that nodes do not act in one wave


class DhtSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is modelled."""

    n_nodes: int = 100_000
    session_s: float = 3600.0
    """Median of how long a node stays; sessions are exponential, and another node comes for one that goes. 0: all stay."""
    duration_s: float = 3600.0
    provider_share: float = 0.1
    """Of nodes that provide something."""
    run_size: int = 50
    """Nodes that provide the same."""
    n_searches: int = 1000
    """Spread over the last quarter of the time: by any node, for anything that a living node provides."""
    rtt_s: float = 0.1

    def __post_init__(self) -> None:
        if self.n_nodes < 2 or self.duration_s <= 0 or self.session_s < 0 or self.run_size < 1:
            raise UsageError("a DHT has at least 2 nodes, a duration above 0, and runs of at least one node")
        if not 0 <= self.provider_share <= 1:
            raise UsageError(f"provider_share {self.provider_share:g}, must be 0 to 1")


class DhtFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `search_` figures are means over searches, `lookup_` ones over lookups of where to announce."""

    n_nodes: int
    n_searches: int
    success: float
    """Share of searches that found a living provider."""
    search_hops: float
    """Answers that led to the first node that named one."""
    search_questions: float
    search_s: float
    lookup_hops: float
    """Answers that led to the closest node."""
    lookup_questions: float
    exact: float
    """Share of lookups whose closest node is the closest of all that live."""
    n_known: float
    """Nodes in a table."""
    n_gone: int
    wall_s: float = 0.0


class DhtModel:
    """One DHT."""

    def __init__(self, settings: DhtSettings, seed: int) -> None:
        self._settings = settings
        self._rng = np.random.default_rng(seed)
        mean_s = settings.session_s / math.log(2)
        deaths = settings.n_nodes * settings.duration_s / mean_s if settings.session_s else 0.0
        self.nodes = DhtNodes(settings.n_nodes, settings.n_nodes + math.ceil(1.5 * deaths + 1000), self._rng)
        self._mean_s = mean_s
        n = settings.n_nodes
        self._look_at_N: Times = self._rng.uniform(0.0, LONGEST_LOOK_S, n)
        self._pause_N: Times = np.full(n, LONGEST_LOOK_S)
        self._runs = max(1, round(n * settings.provider_share / settings.run_size)) if settings.provider_share else 0
        self._run_N: Ints = np.full(n, NOBODY, dtype=np.int32)
        """What each row provides: a node that comes in place of another one provides the same."""
        providers = self._rng.permutation(n)[: min(n, self._runs * settings.run_size)]
        self._run_N[providers] = np.arange(len(providers)) % max(1, self._runs)
        self._members = [np.nonzero(self._run_N == run)[0] for run in range(self._runs)]
        self._key_R = self._rng.integers(0, np.iinfo(np.uint64).max, max(1, self._runs), dtype=np.uint64)
        self._announce_at_N: Times = np.where(self._run_N == NOBODY, np.inf, self._rng.uniform(0.0, FRESH_TARGETS_S, n))
        self._holders_NR: Ints = np.full((n, REPLICATION), NOBODY, dtype=np.int32)
        """Nodes that have the record of a row's node."""
        self._former_NR: Ints = np.full((n, REPLICATION), NOBODY, dtype=np.int32)
        """Those that had it before; it is forgotten there at `_former_until_N`."""
        self._former_until_N: Times = np.zeros(n)
        self._introduce(np.arange(n))

    def run(self, on_tick: Callable[[float], object] = lambda now: None) -> DhtFigures:
        """Go on until the end; what came of it. `on_tick` is told the time."""
        settings, began_s = self._settings, time.perf_counter()
        searches: list[LookedUp] = []
        lookups: list[LookedUp] = []
        exact: list[Flags] = []
        measured_from_s = 0.75 * settings.duration_s
        swept_at, n_sought, now = 0.0, 0, 0.0
        while now < settings.duration_s:
            now = min(now + TICK_S, settings.duration_s)
            self._replace(now)
            self._look_around(now)
            is_measured = now > measured_from_s
            for rows, found in self._announce(now):
                if is_measured:
                    lookups.append(found)
                    exact.append(self._is_closest(rows, found))
            if is_measured:
                due = round(settings.n_searches * (now - measured_from_s) / (settings.duration_s - measured_from_s))
                if due > n_sought:
                    searches.append(self._search(due - n_sought, now))
                    n_sought = due
            if now - swept_at >= SWEEP_S:
                self.nodes.drop_stale(now)
                swept_at = now
            on_tick(now)
        return self._figures(searches, lookups, exact, time.perf_counter() - began_s)

    # what nodes do

    def _replace(self, now: float) -> None:
        if not self._settings.session_s:
            return
        gone = np.nonzero(self._rng.random(self._settings.n_nodes) < -math.expm1(-TICK_S / self._mean_s))[0]
        self._holders_NR[gone] = self._former_NR[gone] = NOBODY  # records of the dead are of no use
        self.nodes.replace(gone, now)
        self._look_at_N[gone], self._pause_N[gone] = now, FIRST_LOOK_S
        self._announce_at_N[gone] = np.where(self._run_N[gone] == NOBODY, np.inf, now)
        self._introduce(gone)

    def _introduce(self, rows: Rows) -> None:
        """Newcomers know some nodes, which know them."""
        for _ in range(N_ENTRIES):
            others = self._rng.integers(0, self._settings.n_nodes, len(rows))
            self.nodes.learn(rows, self.nodes.number_N[others])
            self.nodes.learn(others, self.nodes.number_N[rows])

    def _look_around(self, now: float) -> None:
        while len(rows := np.nonzero(self._look_at_N <= now)[0]):
            places = self.nodes.place_U[self.nodes.number_N[rows]]
            look_up(self.nodes, rows, places, ALPHA, now, self._settings.rtt_s)
            self._look_at_N[rows] = np.maximum(self._look_at_N[rows], now - TICK_S) + self._jittered(self._pause_N[rows])
            self._pause_N[rows] = np.minimum(2 * self._pause_N[rows], LONGEST_LOOK_S)

    def _announce(self, now: float) -> Iterator[tuple[Rows, LookedUp]]:
        """Look up where records are to be held, and have them held there."""
        rows = np.nonzero(self._announce_at_N <= now)[0]
        if not len(rows):
            return
        self._announce_at_N[rows] = now + self._jittered(np.full(len(rows), FRESH_TARGETS_S))
        places = self._key_R[self._run_N[rows]]
        knows_many = self.nodes.n_known_N[rows] > K
        few = rows[~knows_many]  # all nodes fit into one bucket, so that asking finds no more
        if len(few):
            self._hold(few, self.nodes.closest(few, places[~knows_many])[:, :REPLICATION], now)
        rows, places = rows[knows_many], places[knows_many]
        if len(rows):
            found = look_up(self.nodes, rows, places, REPLICATION, now, self._settings.rtt_s)
            self._hold(rows, found.closest, now)
            yield rows, found

    def _hold(self, rows: Rows, targets: Ints, now: float) -> None:
        self._former_NR[rows], self._former_until_N[rows] = self._holders_NR[rows], now + RECORD_S
        self._holders_NR[rows] = np.where(self.nodes.lives(targets), targets, NOBODY)

    def _search(self, n: int, now: float) -> LookedUp:
        """Searches by nodes that have been there for a moment, for what they do not provide themselves."""
        rows = self._rng.integers(0, self._settings.n_nodes, n)
        runs = self._rng.integers(0, max(1, self._runs), n)

        def provides(lookups: Rows, numbers: Ints) -> Flags:
            return np.fromiter(
                (self._names(int(run), int(number), now) for run, number in zip(runs[lookups], numbers, strict=True)),
                bool,
                len(lookups),
            )

        return look_up(self.nodes, rows, self._key_R[runs], ALPHA, now, self._settings.rtt_s, provides)

    def _names(self, run: int, number: int, now: float) -> bool:
        """Whether a node holds a record of a living provider."""
        if not self._runs:
            return False
        members = self._members[run]
        former_MR = self._former_NR[members[self._former_until_N[members] > now]]
        return bool((self._holders_NR[members] == number).any() or (former_MR == number).any())

    # what came of it

    def _is_closest(self, rows: Rows, found: LookedUp) -> Flags:
        living = self.nodes.number_N
        places = self.nodes.place_U[living]
        order = np.argsort(places)
        wanted = self._key_R[self._run_N[rows]]
        best = np.array([living[order][_nearest(places[order], place)] for place in wanted], dtype=np.int64)
        is_closest: Flags = (found.closest[:, 0] == best) | (best == living[rows])  # nobody is named to itself
        return is_closest

    def _figures(self, searches: list[LookedUp], lookups: list[LookedUp], exact: list[Flags], wall_s: float) -> DhtFigures:
        hops = _joined([one.hops for one in searches])
        return DhtFigures(
            n_nodes=self._settings.n_nodes,
            n_searches=len(hops),
            success=_mean(hops > 0),
            search_hops=_mean(hops[hops > 0]),
            search_questions=_mean(_joined([one.n_questions for one in searches])),
            search_s=_mean(np.concatenate([one.took_s for one in searches]) if searches else np.zeros(0)),
            lookup_hops=_mean(_joined([one.hops for one in lookups])),
            lookup_questions=_mean(_joined([one.n_questions for one in lookups])),
            exact=_mean(np.concatenate(exact) if exact else np.zeros(0)),
            n_known=_mean(self.nodes.n_known_N),
            n_gone=self.nodes.n_numbers - self._settings.n_nodes,
            wall_s=round(wall_s, 2),
        )

    def _jittered(self, pause_s: Times) -> Times:
        return pause_s * self._rng.uniform(SHORTEST, 1.0, len(pause_s))


def _nearest(places: "np.ndarray[tuple[int], np.dtype[np.uint64]]", to: np.uint64) -> int:
    """Where in sorted places the one lies that is nearest by the XOR metric: down the tree, bit by bit."""
    low, high = 0, len(places)
    for bit in range(63, -1, -1):
        if high - low <= 1:
            break
        mask = np.uint64(1 << bit)
        split = low + int(np.searchsorted(places[low:high] & mask, mask, side="left"))
        if to & mask:
            low, high = (split, high) if split < high else (low, split)
        else:
            low, high = (low, split) if split > low else (split, high)
    return low


def _joined(parts: list[Rows]) -> Rows:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _mean(values: Rows | Times | Flags) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0
