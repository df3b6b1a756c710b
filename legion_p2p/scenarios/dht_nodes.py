"""The nodes of a modelled DHT as arrays: who lives, who knows whom, who provides what.

Rows are places: the node that comes in place of one that has gone takes over its row, with a new number. A table has all that the
node has been in touch with, as net/dht.py keeps it: a living node stays, because the connection does; a dead one is dropped
STALE_S after its death, or when a question to it fails, and is not asked again for DOWN_S. While a table is small it also has
those that others name, for STALE_S, whether they live or not.

Shapes: N = rows, U = numbers that were given out, T = places in a table, Q = questions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

K = 20  # nodes that an answer names
STALE_S = 600.0
DOWN_S = 60.0
MAX_TABLE = 512  # as many as a node has connections
MAX_DOWN = 16  # that are remembered here; the code remembers 200, of which few are looked at within DOWN_S
TOGETHER = 4096  # rows that are looked through at a time
MET = np.inf
NOBODY = -1
FAR = np.uint64(0xFFFFFFFFFFFFFFFF)

Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint64]
Times = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class DhtNodes:
    """All nodes, the living and the dead."""

    def __init__(self, n_nodes: int, n_numbers: int, rng: np.random.Generator) -> None:
        """`n_numbers`: how many nodes there will ever be."""
        self._rng = rng
        self.place_U: Places = rng.integers(0, FAR, n_numbers, dtype=np.uint64)
        """Where each lies in the space of keys: the first 64 bits."""
        self.died_U: Times = np.full(n_numbers, np.inf)
        self.row_U: Rows = np.zeros(n_numbers, dtype=np.int64)
        self.number_N: Ints = np.arange(n_nodes, dtype=np.int32)
        self.row_U[:n_nodes] = np.arange(n_nodes)
        self.n_numbers = n_nodes
        self.table_NT: Ints = np.full((n_nodes, MAX_TABLE), NOBODY, dtype=np.int32)
        self._named_at_NT = np.zeros((n_nodes, MAX_TABLE), dtype=np.float32)
        """When a node was last named, of those that the row has not been in touch with since; MET: it has."""
        self.n_known_N: Rows = np.zeros(n_nodes, dtype=np.int64)
        self._down_ND: Ints = np.full((n_nodes, MAX_DOWN), NOBODY, dtype=np.int32)
        self._down_until_ND: Times = np.zeros((n_nodes, MAX_DOWN))
        self._down_at_N: Rows = np.zeros(n_nodes, dtype=np.int64)

    def replace(self, rows: Rows, now: float) -> None:
        """The nodes of these rows die, and new ones that know nobody come in their place."""
        numbers = np.arange(self.n_numbers, self.n_numbers + len(rows), dtype=np.int32)
        if len(rows) and numbers[-1] >= len(self.died_U):
            raise ValueError(f"more than {len(self.died_U)} nodes: the model has no numbers left")
        self.died_U[self.number_N[rows]] = now
        self.n_numbers += len(rows)
        self.number_N[rows] = numbers
        self.row_U[numbers] = rows
        self.n_known_N[rows] = 0
        self._down_until_ND[rows] = 0.0

    def lives(self, numbers: Any) -> Any:
        """Of each whether it lives."""
        return self.died_U[numbers] == np.inf

    def closest(self, rows_Q: Rows, places_Q: Places, but_Q: Ints | None = None) -> Ints:
        """The K nodes closest to a place in the table of each row, the closest first; fewer are filled up with NOBODY."""
        width = max(1, int(self.n_known_N[rows_Q].max(initial=0)))
        known_QT = self.table_NT[rows_Q, :width]
        distance_QT = self.place_U[known_QT] ^ places_Q[:, None]
        distance_QT[np.arange(width) >= self.n_known_N[rows_Q, None]] = FAR
        if but_Q is not None:
            distance_QT[known_QT == but_Q[:, None]] = FAR
        if width > K:
            nearest_QK = np.argpartition(distance_QT, K - 1, axis=1)[:, :K]
            known_QT = np.take_along_axis(known_QT, nearest_QK, axis=1)
            distance_QT = np.take_along_axis(distance_QT, nearest_QK, axis=1)
        order_QK = np.argsort(distance_QT, axis=1)
        known_QT = np.take_along_axis(known_QT, order_QK, axis=1)
        distance_QT = np.take_along_axis(distance_QT, order_QK, axis=1)
        found_QK = np.full((len(rows_Q), K), NOBODY, dtype=np.int32)
        found_QK[:, : known_QT.shape[1]] = np.where(distance_QT == FAR, NOBODY, known_QT)
        return found_QK

    def learn(self, rows: Rows, numbers: Ints, named_at: float = MET) -> None:
        """Each row has been in touch with the node of this number, or heard its name. A full table forgets any other one."""
        pairs = np.unique(np.stack([rows, numbers.astype(np.int64)]), axis=1)
        rows, numbers = pairs[0], pairs[1].astype(np.int32)
        width = max(1, int(self.n_known_N[rows].max(initial=0)))
        is_it = (self.table_NT[rows, :width] == numbers[:, None]) & (np.arange(width) < self.n_known_N[rows, None])
        is_known = is_it.any(axis=1)
        at = is_it.argmax(axis=1)
        renewed = is_known if named_at == MET else is_known & ~(self.lives(numbers) & (self._named_at_NT[rows, at] == MET))
        self._named_at_NT[rows[renewed], at[renewed]] = named_at
        wanted = ~is_known & (numbers != self.number_N[rows])
        rows, numbers = rows[wanted], numbers[wanted]
        first = np.searchsorted(rows, rows)  # they are sorted: how many of a row come before
        at = self.n_known_N[rows] + np.arange(len(rows)) - first
        is_over = at >= MAX_TABLE
        at[is_over] = self._rng.integers(0, MAX_TABLE, int(is_over.sum()))
        self.table_NT[rows, at], self._named_at_NT[rows, at] = numbers, named_at
        np.maximum.at(self.n_known_N, rows, np.minimum(at + 1, MAX_TABLE))

    def knows(self, rows_Q: Rows, numbers_QK: Ints) -> Flags:
        """Whether each row's table has each of these."""
        width = max(1, int(self.n_known_N[rows_Q].max(initial=0)))
        known_QT = np.where(np.arange(width) < self.n_known_N[rows_Q, None], self.table_NT[rows_Q, :width], NOBODY - 1)
        knows: Flags = (numbers_QK[:, :, None] == known_QT[:, None, :]).any(axis=2)
        return knows

    def fail(self, rows: Rows, numbers: Ints, now: float) -> None:
        """A question of each row to a node has failed. No row comes twice."""
        at = self._down_at_N[rows] % MAX_DOWN
        self._down_ND[rows, at], self._down_until_ND[rows, at] = numbers, now + DOWN_S
        self._down_at_N[rows] += 1
        width = max(1, int(self.n_known_N[rows].max(initial=0)))
        is_it = (self.table_NT[rows, :width] == numbers[:, None]) & (np.arange(width) < self.n_known_N[rows, None])
        has = is_it.any(axis=1)
        rows, place = rows[has], is_it[has].argmax(axis=1)
        last = self.n_known_N[rows] - 1
        for array_NT in (self.table_NT, self._named_at_NT):
            array_NT[rows, place] = array_NT[rows, last]
        self.n_known_N[rows] = last

    def is_down(self, rows_Q: Rows, named_QK: Ints, now: float) -> Flags:
        """Whether a node that is named is one that did not answer the row a moment ago."""
        down_QD = np.where(self._down_until_ND[rows_Q] > now, self._down_ND[rows_Q], NOBODY - 1)
        is_down: Flags = (named_QK[:, :, None] == down_QD[:, None, :]).any(axis=2)
        return is_down

    def drop_stale(self, now: float) -> None:
        """Forget those that have been dead for long."""
        for at in range(0, len(self.number_N), TOGETHER):
            rows = np.arange(at, min(at + TOGETHER, len(self.number_N)))
            width = max(1, int(self.n_known_N[rows].max()))
            is_there = np.arange(width) < self.n_known_N[rows, None]
            named_at_RT = self._named_at_NT[rows, :width]
            seen_at_RT = np.where(named_at_RT == MET, self.died_U[self.table_NT[rows, :width]], named_at_RT)
            is_kept = is_there & (seen_at_RT > now - STALE_S)
            less = (is_there & ~is_kept).any(axis=1)
            rows, is_kept = rows[less], is_kept[less]
            order = np.argsort(~is_kept, axis=1, kind="stable")
            for array_NT in (self.table_NT, self._named_at_NT):
                array_NT[rows, :width] = np.take_along_axis(array_NT[rows, :width], order, axis=1)
            self.n_known_N[rows] = is_kept.sum(axis=1)
