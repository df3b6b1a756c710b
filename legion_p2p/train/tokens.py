"""Tokens in memory or on disk, and the .bin files that hold token ids.

A large file is not mapped into memory: one that another program cuts off would end the process with SIGBUS. It is read window by
window, with checked lengths, which costs microseconds beside a step of training.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt

from legion_p2p.errors import StoreError
from legion_p2p.files.content import description_of
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import reason_of
from legion_p2p.files.writing import replacing

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
TokenType = np.dtype[np.uint8] | np.dtype[np.uint16] | np.dtype[np.uint32]

MAX_COPIED_BYTES = 64 << 20  # a file of at most this many bytes is read into memory, whatever becomes of it afterwards

HEADER = struct.Struct("<8sBxxxIQ")
"""Of a .bin: magic, bytes per token (1, 2, 4), three zeros, vocabulary size, number of tokens; then the tokens. Little-endian."""
MAGIC = b"LGTOKENS"
DTYPES: dict[int, TokenType] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
"""Of tokens, by their bytes."""


class FileTokens:
    """Tokens of an open file, read when they are asked for. May be used from several threads.

    The file stays open: one that is renamed or removed meanwhile goes on to be read. One that is cut off, or whose ids leave the
    vocabulary, raises a StoreError where it is read.
    """

    def __init__(self, path: Path, file: BinaryIO, begin: int, n_tokens: int, dtype: TokenType, vocab_size: int) -> None:
        """`begin`: where in the file the first token is, in bytes."""
        self.dtype = dtype
        self._path = path
        self._file = file
        self._begin = begin
        self._n_tokens = n_tokens
        self.vocab_size = vocab_size
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._n_tokens

    def part(self, begin: int, end: int) -> Self:
        """The tokens from `begin` to before `end`, of the same open file."""
        return type(self)(
            self._path, self._file, self._begin + begin * self.dtype.itemsize, end - begin, self.dtype, self.vocab_size
        )

    def read(self, begin: int, n_tokens: int) -> TokenArray:
        """So many tokens in a row. Raises: StoreError, if they are no longer there, or are none of the vocabulary."""
        n_bytes = n_tokens * self.dtype.itemsize
        data = self._read_bytes(self._begin + begin * self.dtype.itemsize, n_bytes)
        if len(data) < n_bytes:
            raise StoreError(
                f"{shown(self._path)} was cut off while it is trained on: it ends before token {begin + n_tokens} of "
                f"{self._n_tokens}; another program writes to it"
            )
        tokens = cast(TokenArray, np.frombuffer(data, self.dtype))
        check_vocabulary(tokens, self.vocab_size, self._path)
        return tokens

    def _read_bytes(self, at: int, n_bytes: int) -> bytes:
        try:
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), n_bytes, at)
            with self._lock:
                self._file.seek(at)
                return self._file.read(n_bytes)
        except OSError as failed:
            raise StoreError(f"cannot read {shown(self._path)}: {reason_of(failed)}") from failed


class ShardedTokens:
    """Tokens of several files, one after the other, as one text. May be used from several threads.

    A file is opened when something of it is read, and few are open at a time: a large text has thousands.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        dtype: TokenType,
        opener: Callable[[int], FileTokens],
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """`lengths`: the tokens of each file; `opener` opens the one of an index. `begin` and `end`: only the tokens between."""
        self.dtype = dtype
        self._lengths = tuple(lengths)
        self._ends = np.cumsum([0, *lengths])
        self._opener = opener
        self._begin = begin
        self._end = int(self._ends[-1]) if end is None else end

    def __len__(self) -> int:
        return self._end - self._begin

    def part(self, begin: int, end: int) -> Self:
        """The tokens from `begin` to before `end`."""
        return type(self)(self._lengths, self.dtype, self._opener, self._begin + begin, self._begin + end)

    def read(self, begin: int, n_tokens: int) -> TokenArray:
        """So many tokens in a row. Raises: StoreError, as `FileTokens.read`."""
        at, end = self._begin + begin, self._begin + begin + n_tokens
        read = [np.empty(0, self.dtype)]
        file = int(np.searchsorted(self._ends, at, side="right")) - 1
        while at < end:
            first, last = int(self._ends[file]), int(self._ends[file + 1])
            read.append(self._opener(file).read(at - first, min(end, last) - at))
            at, file = last, file + 1
        return cast(TokenArray, read[1] if len(read) == 2 else np.concatenate(read))


Tokens = TokenArray | FileTokens | ShardedTokens


def part_of(tokens: Tokens, begin: int, end: int) -> Tokens:
    """The tokens from `begin` to before `end`; nothing is copied."""
    return tokens[begin:end] if isinstance(tokens, np.ndarray) else tokens.part(begin, end)


def rows_of(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """`length` tokens from each of `starts` on, copied: (starts, length). Raises: StoreError, as `FileTokens.read`."""
    if not isinstance(tokens, np.ndarray):
        return np.stack([tokens.read(int(start), length) for start in starts]).astype(np.int64)
    rows: npt.NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)].astype(np.int64)
    return rows


def blocks_of(tokens: Tokens, n_tokens: int) -> Iterator[TokenArray]:
    """All of them, in order, this many at a time. Raises: StoreError, as `FileTokens.read`."""
    for begin in range(0, len(tokens), n_tokens):
        end = min(begin + n_tokens, len(tokens))
        yield tokens[begin:end] if isinstance(tokens, np.ndarray) else tokens.read(begin, end - begin)


def check_vocabulary(tokens: TokenArray, vocab_size: int, path: object) -> None:
    """Raises: StoreError, naming the first id that is too large."""
    if vocab_size < 256**tokens.dtype.itemsize and len(tokens) and int(tokens.max()) >= vocab_size:
        raise StoreError(f"{path}: token {int(tokens.max())} in a vocabulary of {vocab_size}")


def write_tokens(path: Path, tokens: TokenArray, vocab_size: int) -> None:
    """Write token ids (uint8, uint16 or uint32) as a .bin. Whole or not at all: an interrupted one leaves no file.

    Raises: StoreError, if they do not fit the vocabulary, or the disk refuses.
    """
    where = shown(path)
    if tokens.dtype not in (np.uint8, np.uint16, np.uint32) or not 0 < vocab_size <= 256**tokens.dtype.itemsize:
        raise StoreError(f"{where}: vocabulary of {vocab_size} in {tokens.dtype}, must be uint8, uint16 or uint32 and fit")
    check_vocabulary(tokens, vocab_size, where)
    with replacing(path) as out:
        out.write(HEADER.pack(MAGIC, tokens.dtype.itemsize, vocab_size, len(tokens)))
        out.write(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).data)


def tokens_in(path: Path, file: BinaryIO) -> tuple[Tokens, int]:
    """The tokens of an open .bin and the size of their vocabulary. Raises: StoreError."""
    stored = stored_tokens(path, file)
    return copied_if_few(stored), stored.vocab_size


def stored_tokens(path: Path, file: BinaryIO) -> FileTokens:
    """The tokens of an open .bin, to be read when they are needed. Raises: StoreError."""
    where = shown(path)
    head = file.read(HEADER.size)
    size = os.fstat(file.fileno()).st_size
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise StoreError(
            f"{where} is no file of tokens, but {description_of(head)}: legion-ctl data prepare makes one of text, and "
            "legion_p2p.train.tokens.write_tokens of ids"
        )
    _, token_bytes, vocab_size, n_tokens = HEADER.unpack(head)
    if token_bytes not in DTYPES or not 0 < vocab_size <= 256**token_bytes:
        raise StoreError(f"{where}: {token_bytes} bytes per token for a vocabulary of {vocab_size}")
    if size != HEADER.size + token_bytes * n_tokens:
        raise StoreError(f"{where}: {size} bytes for {n_tokens} tokens, was it cut off? Write it again")
    return FileTokens(path, file, HEADER.size, n_tokens, DTYPES[token_bytes], int(vocab_size))


def open_tokens(path: Path, file: BinaryIO, begin: int, n_tokens: int, dtype: TokenType, vocab_size: int) -> Tokens:
    """Tokens of an open file: copied where they are few, read when they are needed where they are many. Raises: StoreError."""
    return copied_if_few(FileTokens(path, file, begin, n_tokens, dtype, vocab_size))


def copied_if_few(tokens: FileTokens | ShardedTokens) -> Tokens:
    """Raises: StoreError."""
    return tokens.read(0, len(tokens)) if len(tokens) * tokens.dtype.itemsize <= MAX_COPIED_BYTES else tokens
