"""Batches of windows out of a text that several peers share by chunks.

A chunk is a run of adjacent tokens, often of one or two files: a batch from one chunk would be a batch of near copies. So several
chunks are open at a time, and each window comes from one of them at random. A chunk is cut into windows side by side from a
random offset on, in random order, so that all of it is read once; then it is finished, and the ledger gives the next one.

`heard` and `announcement` may be called from another thread (the network's) than the one that iterates.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.core.chunks import ChunkLedger, LedgerState
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.train.tokens import Tokens, rows_of

DEFAULT_CHUNKS = 256  # of the 11 MB reference text 44 kB each: for 32 peers eight open chunks each
DEFAULT_OPEN_CHUNKS = 8
MAX_EVAL_WINDOWS = 64  # computed at once
MAX_EVAL_TOKENS = 8192  # computed at once: with the vocabulary of GPT-2 their logits alone take 1.6 GB
Batch = tuple[Tensor, Tensor]


class _OpenChunk(msgspec.Struct):
    """A chunk being read: the epoch it was taken in, and the first tokens of the windows still to come."""

    epoch: int
    chunk: int
    starts: list[int]


class _State(msgspec.Struct):
    """What `state_dict` holds, for checking on the way back in."""

    ledger: LedgerState
    rng: dict[str, Any]
    open_chunks: list[_OpenChunk]
    n_tokens: int


def default_chunk_tokens(n_tokens: int, context: int) -> int:
    """Tokens in a chunk for about DEFAULT_CHUNKS of them; fewer chunks of a short text, so that each holds some 8 windows."""
    return max(-(-n_tokens // DEFAULT_CHUNKS), min(8 * context, n_tokens))


def n_chunks_of(n_tokens: int, chunk_tokens: int) -> int:
    """How many chunks a text has: what the ledger is to be made with. They differ in length by one token at most."""
    return max(1, round(n_tokens / chunk_tokens))


class ChunkedWindows:
    """An endless iterator of (x, y): int64 (batch, context) each, y one token further. Epoch follows epoch.

    At most `open_chunks` chunks are open, and never more than this peer's fair share of them, so that nobody takes what others
    would come to soon. `members()` are the peers alive now, for the ledger.
    """

    def __init__(
        self,
        tokens: Tokens,
        chunk_tokens: int,
        context: int,
        batch: int,
        seed: int,
        ledger: ChunkLedger,
        members: Callable[[], Iterable[PeerId]] = tuple,
        open_chunks: int = DEFAULT_OPEN_CHUNKS,
    ) -> None:
        n_chunks = n_chunks_of(len(tokens), chunk_tokens)
        if n_chunks != ledger.n_chunks:
            raise UsageError(f"ledger of {ledger.n_chunks} chunks, the text has {n_chunks} of {chunk_tokens} tokens")
        if min(context, batch, open_chunks) < 1:
            raise UsageError(f"context {context}, batch {batch}, open_chunks {open_chunks}: must all be 1 or more")
        if len(tokens) // n_chunks < context + 1:
            raise UsageError(f"chunks of {len(tokens) // n_chunks} tokens hold no window of {context}: make chunks longer")
        self._tokens = tokens
        self._context = context
        self._batch = batch
        self._ledger = ledger
        self._members = members
        self._max_open = open_chunks
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._open: list[_OpenChunk] = []
        self._lock = threading.Lock()

    def __iter__(self) -> "ChunkedWindows":
        return self

    def __next__(self) -> Batch:
        with self._lock:
            starts = [self._next_start() for _ in range(self._batch)]
        return _windows(self._tokens, np.array(starts), self._context)

    def heard(self, peer: PeerId, epoch: int, bitmap: bytes) -> None:
        """Another peer's announcement. What this peer gives up for it is not read any further.

        Raises: DecodeError, if it is not possible for this text.
        """
        with self._lock:
            lost = self._ledger.heard(peer, epoch, bitmap)
            now = self._ledger.epoch
            self._open = [o for o in self._open if o.epoch != now or o.chunk not in lost]

    def announcement(self) -> tuple[int, bytes]:
        """The epoch, and the bitmap of what this peer has taken in it."""
        with self._lock:
            return self._ledger.epoch, self._ledger.bitmap()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with the very next batch. Plain values: fits JSON (the 128-bit state as text)."""
        with self._lock:
            rng = self._rng.bit_generator.state
            state = _State(
                ledger=self._ledger.state(),
                rng={**rng, "state": {k: str(v) for k, v in rng["state"].items()}},
                open_chunks=self._open,
                n_tokens=len(self._tokens),
            )
            plain: dict[str, Any] = msgspec.to_builtins(state)
            return plain

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that `state` was of.

        Raises: DecodeError, if it is no such state, or of another text.
        """
        try:
            loaded = msgspec.convert(state, _State)
        except msgspec.ValidationError as bad:
            raise DecodeError(f"no state of ChunkedWindows: {bad}") from bad
        last_start = len(self._tokens) - self._context - 1
        fits = all(o.starts and 0 <= min(o.starts) <= max(o.starts) <= last_start for o in loaded.open_chunks)
        if loaded.n_tokens != len(self._tokens) or not fits:
            raise DecodeError(f"state of a text of {loaded.n_tokens} tokens, this one has {len(self._tokens)}")
        with self._lock:
            self._ledger.restore(loaded.ledger)
            self._rng.bit_generator.state = {
                **loaded.rng,
                "state": {k: int(v) for k, v in loaded.rng["state"].items()},
            }
            self._open = loaded.open_chunks

    def follow(self, state: dict[str, Any]) -> None:
        """Go on beside the one that `state` was of: what it had taken, or heard that others had, is not read again.

        Raises: DecodeError, if it is no such state, or of another text.
        """
        try:
            loaded = msgspec.convert(state, _State)
        except msgspec.ValidationError as bad:
            raise DecodeError(f"no state of ChunkedWindows: {bad}") from bad
        with self._lock:
            self._ledger.restore(loaded.ledger.left_to_others())
            self._open = []

    def _next_start(self) -> int:
        self._refill()
        i = int(self._rng.integers(len(self._open)))
        source = self._open[i]
        start = source.starts.pop()
        if not source.starts:
            del self._open[i]
            if source.epoch == self._ledger.epoch:
                self._ledger.finished(source.chunk)
        return start

    def _refill(self) -> None:
        members = {*self._members(), self._ledger.me}
        wanted = max(1, min(self._max_open, self._ledger.n_chunks // len(members)))
        while len(self._open) < wanted:
            chunk = self._ledger.claim(members)
            if chunk is None:
                self._ledger.next_epoch()  # what is open of the old one is read to its end all the same
            else:
                self._open.append(_OpenChunk(self._ledger.epoch, chunk, self._cut(chunk)))

    def _cut(self, chunk: int) -> list[int]:
        """The starts of the windows of `chunk`, the next one last."""
        n_tokens, n_chunks = len(self._tokens), self._ledger.n_chunks
        first, end = chunk * n_tokens // n_chunks, (chunk + 1) * n_tokens // n_chunks
        # the last target may be the first token of the next chunk; the text's very last token has none
        usable = min(end, n_tokens - 1) - first
        offset = int(self._rng.integers(usable % self._context + 1))
        starts = first + offset + self._context * self._rng.permutation(usable // self._context)
        return [int(start) for start in starts]


def windows_at_once(context: int) -> int:
    """How many windows an evaluation computes at once."""
    return max(1, min(MAX_EVAL_WINDOWS, MAX_EVAL_TOKENS // context))


def validation_batches(tokens: Tokens, context: int, n_windows: int = 384, batch: int = 64) -> Iterator[Batch]:
    """`n_windows` evenly spaced windows, always the same ones, in batches of (x, y) as above. The last may be smaller.

    Raises: StoreError, if the text is shorter than one window.
    """
    last_start = len(tokens) - context - 1
    if last_start < 0:
        raise StoreError(f"validation text of {len(tokens)} tokens, context {context} needs {context + 1}")
    starts = np.linspace(0, last_start, n_windows).astype(np.int64)
    for i in range(0, n_windows, batch):
        yield _windows(tokens, starts[i : i + batch], context)


def _windows(tokens: Tokens, starts: npt.NDArray[np.int64], context: int) -> Batch:
    windows = torch.from_numpy(rows_of(tokens, starts, context + 1))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
