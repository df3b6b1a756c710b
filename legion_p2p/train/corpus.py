"""Text to train on, as one array of tokens for training and one for validation.

Sources, as `open_text` takes them:

    "stdlib"       the Python standard library of the running interpreter: the reference text, on every machine already
    a folder       all text files below it
    a text file    its bytes, mapped into memory
    a .bin file    token ids that `write_tokens` wrote, mapped into memory

Tokens are bytes (vocabulary 256), but in a .bin. What is held back for validation is decided by content where there are several
files (one twentieth of them, by hash, so that nobody chooses), and is the last twentieth of a single one, which stays mapped.
"""

import hashlib
import os
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from legion_p2p.errors import StoreError

Tokens = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

BYTE_VOCABULARY = 256
MAX_FOLDER_BYTES = 4 << 30  # a folder is read into memory; more belongs into a .bin, which is mapped
VALIDATION_SHARE = 0.05

# not the text of the library: its tests, what is installed beside it, and a copy of Python 2's grammar tools
_NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"})
_TEXT_PROBE_BYTES = 8192  # a zero byte within these means binary: git's rule
_HASH_BLOCK = 1 << 20  # tokens at a time

_BIN_HEADER = struct.Struct("<8sBxxxIQ")
"""Magic, bytes per token (1 or 2), three zeros, vocabulary size, number of tokens; then the tokens. All little-endian."""
_BIN_MAGIC = b"LGTOKENS"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, split. Arrays may be mapped files: read-only."""

    name: str
    train: Tokens
    validation: Tokens
    vocab_size: int
    digest: bytes
    """SHA-256 over type, lengths and all tokens: peers with equal digests have the same text, split alike."""


def encode(text: str) -> npt.NDArray[np.uint8]:
    """The byte tokenizer: UTF-8."""
    return np.frombuffer(text.encode(), np.uint8)


def decode(tokens: Iterable[int]) -> str:
    """The text of byte tokens; what is not UTF-8 becomes U+FFFD."""
    return bytes(tokens).decode(errors="replace")


def stdlib_text(root: Path | None = None) -> tuple[bytes, bytes]:
    """Training and validation text out of the Python standard library, or another one at `root`.

    The .py files without tests, ordered by the SHA-1 of their bytes, each followed by a zero byte; empty ones left out. CPython
    3.11.7: 11,260,712 and 570,007 bytes. The text changes with the Python version, and by some bytes with the build: one file
    (_sysconfigdata) lists compiler flags and paths.

    Raises: StoreError, if the files are not there: some distributions ship them as a zip, or not at all.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in _files_below(root) if p.suffix == ".py" and not _NOT_STDLIB.intersection(p.relative_to(root).parts)]
    train, validation = _split_by_hash(_read(p) for p in files)
    if not train or not validation:
        raise StoreError(f"{root} holds no source of the Python standard library: give a folder or file of text instead")
    return train, validation


def open_text(source: str | Path, context: int = 1) -> Corpus:
    """Open one of the sources above. `context` is the length that the model reads: both parts must hold one window of it.

    Raises: StoreError, if it is missing, empty, too small or too large, or cannot be read.
    """
    path = Path(source)
    vocab_size = BYTE_VOCABULARY
    train: Tokens
    validation: Tokens
    if source == "stdlib":
        name = "stdlib"
        train, validation = map(_bytes_array, stdlib_text())
    elif not path.exists():
        raise StoreError(f'{path} does not exist: give "stdlib", a folder, a text file or a .bin of tokens')
    elif path.is_dir():
        name = path.resolve().name
        train, validation = map(_bytes_array, _folder_text(path))
    else:
        name = path.name
        tokens, vocab_size = _map_tokens(path) if path.suffix == ".bin" else (_map_bytes(path), BYTE_VOCABULARY)
        n_train = len(tokens) - int(len(tokens) * VALIDATION_SHARE)
        train, validation = tokens[:n_train], tokens[n_train:]
    if min(len(train), len(validation)) < context + 1:
        raise StoreError(
            f"{source}: {len(train)} training and {len(validation)} validation tokens, "
            f"context {context} needs {context + 1} of each: give more text"
        )
    return Corpus(name, train, validation, vocab_size, _digest(source, train, validation, vocab_size))


def write_tokens(path: Path, tokens: Tokens, vocab_size: int) -> None:
    """Write token ids (uint8 or uint16) as a .bin for `open_text`. Whole or not at all: an interrupted one leaves no file.

    Raises: StoreError, if they do not fit the vocabulary, or the disk refuses.
    """
    if tokens.dtype not in (np.uint8, np.uint16) or not 0 < vocab_size <= 256**tokens.dtype.itemsize:
        raise StoreError(f"{path}: vocabulary of {vocab_size} in {tokens.dtype}, must be uint8 or uint16 and fit")
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise StoreError(f"{path}: token {int(tokens.max())} in a vocabulary of {vocab_size}")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as out:
            out.write(_BIN_HEADER.pack(_BIN_MAGIC, tokens.dtype.itemsize, vocab_size, len(tokens)))
            out.write(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).data)
        partial.replace(path)
    except OSError as refused:
        raise StoreError(f"{path} cannot be written: {refused.strerror}") from refused


def _files_below(root: Path) -> Iterator[Path]:
    """Regular files, hidden ones and links left out: a link may lead anywhere, or in a circle."""

    def fail(error: OSError) -> None:
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as refused:
        raise StoreError(f"{path} cannot be read: {refused.strerror}") from refused


def _folder_text(root: Path) -> tuple[bytes, bytes]:
    files = list(_files_below(root))
    n_bytes = sum(p.stat().st_size for p in files)
    if n_bytes > MAX_FOLDER_BYTES:
        raise StoreError(f"{root} holds {n_bytes} bytes, limit is {MAX_FOLDER_BYTES}: make a .bin of it (write_tokens)")
    texts = [text for p in files if (text := _read(p)) and b"\0" not in text[:_TEXT_PROBE_BYTES]]
    if not texts:
        raise StoreError(f"{root} holds no text files")
    train, validation = _split_by_hash(texts)
    if not train or not validation:
        # of a few files chance may put all on one side: then the last twentieth of their text is held back
        text = train or validation
        n_train = len(text) - int(len(text) * VALIDATION_SHARE)
        train, validation = text[:n_train], text[n_train:]
    return train, validation


def _split_by_hash(texts: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Training and validation text; which one a file is for, and where it stands, its SHA-1 decides, not its name."""
    limit = int(VALIDATION_SHARE * 2**32)
    train: list[bytes] = []
    validation: list[bytes] = []
    for sha1, text in sorted((hashlib.sha1(text, usedforsecurity=False).digest(), text) for text in texts if text):
        part = validation if int.from_bytes(sha1[:4], "big") < limit else train
        part += text, b"\0"
    return b"".join(train), b"".join(validation)


def _bytes_array(text: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


def _map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            raise StoreError(f"{path} is empty")
        return np.memmap(path, np.uint8, "r")
    except OSError as refused:
        raise StoreError(f"{path} cannot be read: {refused.strerror}") from refused


def _map_tokens(path: Path) -> tuple[Tokens, int]:
    """The tokens of a .bin and the size of their vocabulary."""
    raw = _map_bytes(path)
    if len(raw) < _BIN_HEADER.size or bytes(raw[:8]) != _BIN_MAGIC:
        raise StoreError(f"{path} is no file of tokens: write it with legion_p2p.train.corpus.write_tokens")
    _, token_bytes, vocab_size, n_tokens = _BIN_HEADER.unpack(bytes(raw[: _BIN_HEADER.size]))
    if token_bytes not in (1, 2) or not 0 < vocab_size <= 256**token_bytes:
        raise StoreError(f"{path}: {token_bytes} bytes per token for a vocabulary of {vocab_size}")
    if len(raw) != _BIN_HEADER.size + token_bytes * n_tokens:
        raise StoreError(f"{path}: {len(raw)} bytes for {n_tokens} tokens, was it cut off? Write it again")
    tokens = raw[_BIN_HEADER.size :]
    # the header's length is even, so the view is aligned
    return (tokens if token_bytes == 1 else tokens.view(np.dtype("<u2"))), int(vocab_size)


def _digest(source: str | Path, train: Tokens, validation: Tokens, vocab_size: int) -> bytes:
    """See Corpus.digest. It reads everything once, so here is where a token outside the vocabulary is found."""
    sha256 = hashlib.sha256(f"{train.dtype.itemsize} {vocab_size} {len(train)} {len(validation)}\n".encode())
    for tokens in (train, validation):
        for start in range(0, len(tokens), _HASH_BLOCK):
            block = tokens[start : start + _HASH_BLOCK]
            if vocab_size < 256**block.itemsize and int(block.max()) >= vocab_size:
                raise StoreError(f"{source}: token {int(block.max())} in a vocabulary of {vocab_size}")
            sha256.update(block.data)
    return sha256.digest()
