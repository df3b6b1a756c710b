"""Tokens in memory or on disk, and the .bin files that hold token ids.

A large file is not mapped into memory: one that another program cuts off would end the process with SIGBUS. It is read window by
window, with checked lengths, which costs microseconds beside a step of training.
"""

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt

from legion_p2p.errors import StoreError
from legion_p2p.files.content import description_of
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import reason_of
from legion_p2p.files.writing import replacing

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MAX_COPIED_BYTES = 64 << 20  # a file of at most this many bytes is read into memory, whatever becomes of it afterwards

HEADER = struct.Struct("<8sBxxxIQ")
"""Of a .bin: magic, bytes per token (1 or 2), three zeros, vocabulary size, number of tokens; then the tokens. Little-endian."""
MAGIC = b"LGTOKENS"


class FileTokens:
    """Tokens of an open file, read when they are asked for. May be used from several threads.

    The file stays open: one that is renamed or removed meanwhile goes on to be read. One that is cut off, or whose ids leave the
    vocabulary, raises a StoreError where it is read.
    """

    def __init__(self, path: Path, file: BinaryIO, begin: int, n_tokens: int, dtype: "np.dtype[np.uint8] | np.dtype[np.uint16]",
                 vocab_size: int) -> None:  # fmt: skip
        """`begin`: where in the file the first token is, in bytes."""
        self.dtype = dtype
        self._path = path
        self._file = file
        self._begin = begin
        self._n_tokens = n_tokens
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._n_tokens

    def part(self, begin: int, end: int) -> Self:
        """The tokens from `begin` to before `end`, of the same open file."""
        return type(self)(
            self._path, self._file, self._begin + begin * self.dtype.itemsize, end - begin, self.dtype, self._vocab_size
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
        check_vocabulary(tokens, self._vocab_size, self._path)
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


Tokens = TokenArray | FileTokens


def part_of(tokens: Tokens, begin: int, end: int) -> Tokens:
    """The tokens from `begin` to before `end`; nothing is copied."""
    return tokens.part(begin, end) if isinstance(tokens, FileTokens) else tokens[begin:end]


def rows_of(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """`length` tokens from each of `starts` on, copied: (starts, length). Raises: StoreError, as `FileTokens.read`."""
    if isinstance(tokens, FileTokens):
        return np.stack([tokens.read(int(start), length) for start in starts]).astype(np.int64)
    rows: npt.NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)].astype(np.int64)
    return rows


def blocks_of(tokens: Tokens, n_tokens: int) -> Iterator[TokenArray]:
    """All of them, in order, this many at a time. Raises: StoreError, as `FileTokens.read`."""
    for begin in range(0, len(tokens), n_tokens):
        end = min(begin + n_tokens, len(tokens))
        yield tokens.read(begin, end - begin) if isinstance(tokens, FileTokens) else tokens[begin:end]


def check_vocabulary(tokens: TokenArray, vocab_size: int, path: object) -> None:
    """Raises: StoreError, naming the first id that is too large."""
    if vocab_size < 256**tokens.dtype.itemsize and len(tokens) and int(tokens.max()) >= vocab_size:
        raise StoreError(f"{path}: token {int(tokens.max())} in a vocabulary of {vocab_size}")


def write_tokens(path: Path, tokens: TokenArray, vocab_size: int) -> None:
    """Write token ids (uint8 or uint16) as a .bin. Whole or not at all: an interrupted one leaves no file.

    Raises: StoreError, if they do not fit the vocabulary, or the disk refuses.
    """
    where = shown(path)
    if tokens.dtype not in (np.uint8, np.uint16) or not 0 < vocab_size <= 256**tokens.dtype.itemsize:
        raise StoreError(f"{where}: vocabulary of {vocab_size} in {tokens.dtype}, must be uint8 or uint16 and fit")
    check_vocabulary(tokens, vocab_size, where)
    with replacing(path) as out:
        out.write(HEADER.pack(MAGIC, tokens.dtype.itemsize, vocab_size, len(tokens)))
        out.write(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).data)


def tokens_in(path: Path, file: BinaryIO) -> tuple[Tokens, int]:
    """The tokens of an open .bin and the size of their vocabulary. Raises: StoreError."""
    where = shown(path)
    head = file.read(HEADER.size)
    size = os.fstat(file.fileno()).st_size
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise StoreError(
            f"{where} is no file of tokens, but {description_of(head)}: write it with legion_p2p.train.tokens.write_tokens"
        )
    _, token_bytes, vocab_size, n_tokens = HEADER.unpack(head)
    if token_bytes not in (1, 2) or not 0 < vocab_size <= 256**token_bytes:
        raise StoreError(f"{where}: {token_bytes} bytes per token for a vocabulary of {vocab_size}")
    if size != HEADER.size + token_bytes * n_tokens:
        raise StoreError(f"{where}: {size} bytes for {n_tokens} tokens, was it cut off? Write it again")
    dtype = np.dtype("<u2" if token_bytes == 2 else "u1")
    return open_tokens(path, file, HEADER.size, n_tokens, dtype, int(vocab_size)), int(vocab_size)


def open_tokens(
    path: Path, file: BinaryIO, begin: int, n_tokens: int, dtype: "np.dtype[np.uint8] | np.dtype[np.uint16]", vocab_size: int
) -> Tokens:
    """Tokens of an open file: copied where they are few, read when they are needed where they are many. Raises: StoreError."""
    tokens = FileTokens(path, file, begin, n_tokens, dtype, vocab_size)
    return tokens.read(0, n_tokens) if n_tokens * dtype.itemsize <= MAX_COPIED_BYTES else tokens
