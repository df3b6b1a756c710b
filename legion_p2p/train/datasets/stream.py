"""Batches out of text that nobody has prepared: each peer reads its own part of the sources, as the ledger of chunks gives it.

A chunk is a task of the sources (train/datasets/sources.py): some files, a part of a large one, or a shard of a data set of the
library datasets. What peers announce is the same as for prepared text, so that no two read the same, and a peer that comes back
reads on where it was: it skips the windows of an open chunk that it has had.

`heard`, `announcement` and `state_dict` may be called from another thread (the network's) than the one that iterates. They never
wait for a source, which may be a slow server. A state that is asked for in the middle of a batch counts what was read of it as
given.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from legion_p2p.core.chunks import MAX_CHUNKS, ChunkLedger, LedgerState
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.train.batches import Batch
from legion_p2p.train.datasets.documents import Reading, texts_of
from legion_p2p.train.datasets.sources import Sources, Task
from legion_p2p.train.datasets.tokenizer import Tokenizer

DEFAULT_OPEN_STREAMS = 4  # each holds a piece of text; a batch should not come from one place alone
MAX_SKIPPED = 1 << 24  # windows of one chunk: what a state may ask to be read again


class _OpenStream(msgspec.Struct):
    """A chunk that is being read: the epoch it was taken in, and how many windows of it were given."""

    epoch: int
    chunk: int
    n_given: int = 0


class _StreamState(msgspec.Struct):
    ledger: LedgerState
    open_streams: list[_OpenStream]
    n_chunks: int


class StreamedWindows:
    """An endless iterator of (x, y): int64 (batch, context) each, y one token further. Epoch follows epoch.

    Windows of the open chunks take turns. `members()` are the peers alive now, for the ledger.
    """

    def __init__(
        self,
        sources: Sources,
        tokenizer: Tokenizer,
        context: int,
        batch: int,
        me: PeerId,
        members: Callable[[], Iterable[PeerId]] = tuple,
        reading: Reading | None = None,
        leave_out: Callable[[str], bool] = lambda text: False,
    ) -> None:
        """`reading`: how rows are read; the text of the field `text` where nothing is said. `leave_out`: which documents are
        skipped.

        Raises: UsageError.
        """
        if min(context, batch) < 1:
            raise UsageError(f"context {context}, batch {batch}: must both be 1 or more")
        self._tasks = sources.tasks
        self._ledger = ChunkLedger(min(len(sources.tasks), MAX_CHUNKS), me)
        self._tokenizer = tokenizer
        self._context = context
        self._batch = batch
        self._members = members
        self._reading = reading or Reading()
        self._leave_out = leave_out
        self._open: list[_OpenStream] = []
        self._windows: dict[tuple[int, int], Iterator[npt.NDArray[np.int64]]] = {}
        """Of the thread that iterates, alone."""
        self._turn = 0
        self._n_empty = 0
        self._lock = threading.Lock()

    def __iter__(self) -> "StreamedWindows":
        return self

    def __next__(self) -> Batch:
        """Raises: StoreError, if a source cannot be read."""
        windows = torch.from_numpy(np.stack([self._next_window() for _ in range(self._batch)]))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def heard(self, peer: PeerId, epoch: int, bitmap: bytes) -> None:
        """Another peer's announcement: what this one gives up to it is read no further. Raises: DecodeError."""
        with self._lock:
            lost = self._ledger.heard(peer, epoch, bitmap)
            self._open = [one for one in self._open if one.epoch != self._ledger.epoch or one.chunk not in lost]

    def announcement(self) -> tuple[int, bytes]:
        """The epoch, and the bitmap of what this peer has taken in it."""
        with self._lock:
            return self._ledger.epoch, self._ledger.bitmap()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with the very next batch. Plain values: fits JSON."""
        with self._lock:
            plain: dict[str, Any] = msgspec.to_builtins(
                _StreamState(self._ledger.state(), self._rotated(), self._ledger.n_chunks)
            )
            return plain

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that `state` was of. Raises: DecodeError, if it is no such state, or of other sources."""
        try:
            loaded = msgspec.convert(state, _StreamState)
        except msgspec.ValidationError as bad:
            raise DecodeError(f"no state of StreamedWindows: {bad}") from bad
        fits = all(0 <= one.chunk < loaded.n_chunks and 0 <= one.n_given <= MAX_SKIPPED for one in loaded.open_streams)
        if loaded.n_chunks != self._ledger.n_chunks or not fits:
            raise DecodeError(f"state of {loaded.n_chunks} chunks, these sources have {self._ledger.n_chunks}")
        with self._lock:
            self._ledger.restore(loaded.ledger)
            self._open, self._windows, self._turn = loaded.open_streams, {}, 0

    def follow(self, state: dict[str, Any]) -> None:
        """Go on beside the one that `state` was of: what it had taken, or heard that others had, is not read again.

        Raises: DecodeError, if it is no such state, or of other sources.
        """
        self.load_state_dict(state)
        with self._lock:
            self._ledger.restore(self._ledger.state().left_to_others())
            self._open = []

    def _rotated(self) -> list[_OpenStream]:
        """The open chunks, the one whose turn is next first."""
        return [*self._open[self._turn :], *self._open[: self._turn]]

    def _next_window(self) -> npt.NDArray[np.int64]:
        while True:
            source = self._next_source()
            window = next(self._windows_of(source), None)  # not under the lock: this may take as long as a server does
            with self._lock:
                at = next((i for i, one in enumerate(self._open) if one is source), None)
                if at is None:
                    continue  # another peer has it, since a moment ago
                if window is not None:
                    source.n_given += 1
                    self._turn = at + 1
                    self._n_empty = 0
                    return window
                self._ended(at)

    def _next_source(self) -> _OpenStream:
        """The chunk whose turn it is."""
        with self._lock:
            self._refill()
            self._turn %= len(self._open)
            still_open = {(one.epoch, one.chunk) for one in self._open}
            source = self._open[self._turn]
        self._windows = {key: windows for key, windows in self._windows.items() if key in still_open}
        return source

    def _ended(self, at: int) -> None:
        """The open chunk at this place has no further window. Raises: StoreError, if none has one."""
        source = self._open.pop(at)
        if source.epoch == self._ledger.epoch and self._ledger.holds(source.chunk):
            self._ledger.finished(source.chunk)
        self._n_empty += not source.n_given
        if self._n_empty > self._ledger.n_chunks:
            raise StoreError(f"no source holds a window of {self._context} tokens: give more text, or a shorter --context")

    def _refill(self) -> None:
        members = {*self._members(), self._ledger.me}
        wanted = max(1, min(DEFAULT_OPEN_STREAMS, self._ledger.n_chunks // len(members)))
        while len(self._open) < wanted:
            chunk = self._ledger.claim(members)
            if chunk is None:
                self._ledger.next_epoch()
            else:
                self._open.append(_OpenStream(self._ledger.epoch, chunk))

    def _windows_of(self, source: _OpenStream) -> Iterator[npt.NDArray[np.int64]]:
        key = source.epoch, source.chunk
        if key not in self._windows:
            self._windows[key] = self._read(source.chunk)
            for _ in range(source.n_given):
                next(self._windows[key], None)
        return self._windows[key]

    def _read(self, chunk: int) -> Iterator[npt.NDArray[np.int64]]:
        """Windows side by side, each one token longer than the context, which is also the first of the next."""
        rest = np.empty(0, np.int64)
        end = [] if self._tokenizer.end_of_text is None else [self._tokenizer.end_of_text]
        for task in self._tasks_of(chunk):
            for piece in task.pieces:
                for text, ends in texts_of(piece, self._reading):
                    if self._leave_out(text):
                        continue
                    (tokens,) = self._tokenizer.encode([text])
                    rest = np.concatenate([rest, tokens.astype(np.int64), np.array(end if ends else [], np.int64)])
                    n_windows = max(0, (len(rest) - 1) // self._context)
                    for i in range(n_windows):
                        yield rest[i * self._context : (i + 1) * self._context + 1]
                    rest = rest[n_windows * self._context :]

    def _tasks_of(self, chunk: int) -> Iterable[Task]:
        """More tasks than there may be chunks share them."""
        return self._tasks[chunk :: self._ledger.n_chunks]
