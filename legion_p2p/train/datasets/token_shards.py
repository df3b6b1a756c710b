"""Token shards while they are written."""

import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from legion_p2p.files.reading import opened
from legion_p2p.files.writing import telling, write_all
from legion_p2p.store.dataset_files import write_node
from legion_p2p.train.tokens import HEADER, MAGIC, TokenArray, TokenType, blocks_of, stored_tokens

MAX_SHARD_TOKENS = 1 << 25  # 64 MiB of two bytes each; a file that was damaged is a small part of the data


_COPIED_TOKENS = 1 << 20  # at a time


class WrittenShard(msgspec.Struct, frozen=True):
    """A shard that is whole. `cid`: of its node."""

    path: str
    n_tokens: int
    cid: str


class ShardWriter:
    """Appends tokens; begins a new file where one is full. Files are whole, and have their nodes, once `finish` returns."""

    def __init__(self, stem: Path, dtype: TokenType, vocab_size: int) -> None:
        """Files are named `stem` and a number."""
        self._stem = stem
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._file: BinaryIO | None = None
        self._n_tokens = 0
        self._written: list[WrittenShard] = []

    def append(self, tokens: TokenArray) -> None:
        """Raises: StoreError; DiskFullError."""
        while len(tokens):
            if self._file is None:
                self._begin()
            assert self._file is not None
            some = tokens[: MAX_SHARD_TOKENS - self._n_tokens]
            with telling(self._path):
                write_all(self._file, some.astype(self._dtype).tobytes())
            self._n_tokens += len(some)
            tokens = tokens[len(some) :]
            if self._n_tokens == MAX_SHARD_TOKENS:
                self._end()

    def finish(self) -> list[WrittenShard]:
        """Raises: StoreError; DiskFullError."""
        if self._file is not None:
            self._end()
        return self._written

    def abandon(self) -> None:
        """Close what is open: the rest failed."""
        if self._file is not None:
            self._file.close()

    @property
    def _path(self) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{len(self._written):03d}.bin")

    def _begin(self) -> None:
        with telling(self._path):
            self._file = open(self._path, "wb")  # noqa: SIM115 (closed in `_end` or `abandon`)
            write_all(self._file, bytes(HEADER.size))
        self._n_tokens = 0

    def _end(self) -> None:
        assert self._file is not None
        path = self._path
        with telling(path), self._file as file:
            file.seek(0)
            file.write(HEADER.pack(MAGIC, self._dtype.itemsize, self._vocab_size, self._n_tokens))
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        self._written.append(WrittenShard(path.name, self._n_tokens, str(write_node(path))))


def copy_part(path: Path, begin: int, end: int, stem: Path) -> WrittenShard:
    """Some tokens of a shard as a shard of its own, at `stem` and a number. Raises: StoreError; DiskFullError."""
    with opened(path) as file:
        tokens = stored_tokens(path, file)
        writer = ShardWriter(stem, tokens.dtype, tokens.vocab_size)
        try:
            for block in blocks_of(tokens.part(begin, end), _COPIED_TOKENS):
                writer.append(block)
            (made,) = writer.finish()
        finally:
            writer.abandon()
    return made
