"""Text to train on, as tokens for training and for validation.

Sources, as `open_text` takes them:

    "stdlib"       the Python standard library of the running interpreter: the reference text, on every machine already
    "tales"        little stories in simple English, which tales.py makes: the same on every machine
    a folder       all text files below it
    a text file    its bytes; packed with gzip, zstandard, bzip2 or xz it is unpacked, UTF-16 becomes UTF-8
    a .bin file    token ids that `write_tokens` wrote
    a prepared folder   what `legion-ctl data prepare` wrote

Tokens are bytes (vocabulary 256), but in a .bin. What is held back for validation is decided by content where there are several
files (one twentieth of them, by hash, so that nobody chooses), and is the last twentieth of a single one.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from legion_p2p.errors import StoreError
from legion_p2p.files.content import PROBE_BYTES, UTF8_MARK, is_binary, wide_encoding_of
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import opened
from legion_p2p.train.datasets.prepared import PreparedFolder, open_prepared
from legion_p2p.train.datasets.streamed import StreamedText
from legion_p2p.train.tales import tales_text
from legion_p2p.train.text_files import files_below, packed_as, plain_text, read_file, read_folder
from legion_p2p.train.tokens import MAGIC, Tokens, blocks_of, check_vocabulary, open_tokens, part_of, tokens_in

BYTE_VOCABULARY = 256
STDLIB, TALES = "stdlib", "tales"
BUILT_IN = (STDLIB, TALES)
"""Texts that every peer has, so that a run's specification may name them."""
MAX_FOLDER_BYTES = 4 << 30  # a folder, or what is unpacked, is held in memory; more belongs into a .bin, which is not
VALIDATION_SHARE = 0.05

# not the text of the library: its tests, what is installed beside it, and a copy of Python 2's grammar tools
_NOT_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"})
_HASH_BLOCK = 1 << 20  # tokens at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, split. What is large is read from its file when it is needed."""

    name: str
    train: Tokens
    validation: Tokens
    vocab_size: int
    digest: bytes
    """SHA-256 over type, lengths and all tokens: peers with equal digests have the same text, split alike."""
    left_out: str = ""
    """What of a folder is no text, in words; empty: nothing."""
    prepared: PreparedFolder | None = None
    """Where it was prepared."""
    streamed: StreamedText | None = None
    """Where it is read as it is trained on: `train` is not what it is trained on then."""

    @property
    def tokenizer(self) -> bytes:
        """The tokenizer.json of the text; empty: its tokens are bytes, or nobody knows."""
        if self.streamed is not None:
            return self.streamed.tokenizer.raw
        return b"" if self.prepared is None else self.prepared.tokenizer


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
    files = [path for path in files_below(root, without=_NOT_STDLIB) if path.suffix == ".py"]
    train, validation = _split_by_hash(read_file(p, MAX_FOLDER_BYTES) for p in files)
    if not train or not validation:
        raise StoreError(f"{root} holds no source of the Python standard library: give a folder or file of text instead")
    return train, validation


def open_text(source: str | Path, context: int = 1) -> Corpus:
    """Open one of the sources above. `context` is the length that the model reads: both parts must hold one window of it.

    Raises: StoreError, if it is missing, empty, too small or too large, or cannot be read.
    """
    vocab_size, left_out = BYTE_VOCABULARY, ""
    train: Tokens
    validation: Tokens
    if source == STDLIB:
        name = STDLIB
        train, validation = map(_bytes_array, stdlib_text())
    elif source == TALES:
        name = TALES
        train, validation = _split_at_the_end(_bytes_array(tales_text()))
    else:
        path = user_path(source)
        kind = kind_of(path)
        name = shown(path.resolve().name if kind is FileKind.FOLDER else path.name)
        if kind is FileKind.MISSING:
            raise StoreError(f'{shown(path)} does not exist: give "stdlib", "tales", a folder, a text file or a .bin of tokens')
        prepared = open_prepared(path)
        if prepared is not None:
            return _prepared_corpus(prepared, name, context)
        if kind is FileKind.FOLDER:
            train, validation, left_out = _folder_text(path)
        else:
            tokens, vocab_size = _file_tokens(path)
            train, validation = _split_at_the_end(tokens)
    _check_length(shown(source), train, validation, context)
    return Corpus(name, train, validation, vocab_size, _digest(source, train, validation, vocab_size), left_out)


def _split_at_the_end(tokens: Tokens) -> tuple[Tokens, Tokens]:
    n_train = len(tokens) - int(len(tokens) * VALIDATION_SHARE)
    return part_of(tokens, 0, n_train), part_of(tokens, n_train, len(tokens))


def _prepared_corpus(prepared: PreparedFolder, name: str, context: int) -> Corpus:
    """Nothing of it is read yet: its id says what it is."""
    train, validation = prepared.tokens("train"), prepared.tokens("validation")
    _check_length(shown(prepared.path), train, validation, context)
    return Corpus(name, train, validation, prepared.dataset.vocab_size, prepared.cid.raw[-32:], prepared=prepared)


def _check_length(where: str, train: Tokens, validation: Tokens, context: int) -> None:
    if min(len(train), len(validation)) < context + 1:
        raise StoreError(
            f"{where}: {len(train)} training and {len(validation)} validation tokens, "
            f"context {context} needs {context + 1} of each: give more text"
        )


def _file_tokens(path: Path) -> tuple[Tokens, int]:
    """The tokens of a single file, and the size of their vocabulary."""
    where = shown(path)
    with opened(path) as probe:
        head = probe.read(PROBE_BYTES)
    if not head:
        raise StoreError(f"{where} is empty")
    if path.suffix.lower() != ".bin" and not head.startswith(MAGIC):
        if packed_as(head) or wide_encoding_of(head) or is_binary(head):
            return _bytes_array(plain_text(read_file(path, MAX_FOLDER_BYTES), where, MAX_FOLDER_BYTES)), BYTE_VOCABULARY
        file = open(path, "rb")  # noqa: SIM115 (tokens are read from it as long as anybody has them)
        begin = len(UTF8_MARK) if head.startswith(UTF8_MARK) else 0
        n_tokens = os.fstat(file.fileno()).st_size - begin
        return open_tokens(path, file, begin, n_tokens, np.dtype(np.uint8), BYTE_VOCABULARY), BYTE_VOCABULARY
    return tokens_in(path, open(path, "rb"))


def _folder_text(root: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], str]:
    """Training and validation text of a folder, and what of it is no text."""
    found = read_folder(root, MAX_FOLDER_BYTES)
    left_out = found.left_out_text()
    if not found.texts:
        raise StoreError(f"{shown(root)} holds no text files" + (f", but {left_out}" if left_out else ""))
    train, validation = _split_by_hash(found.texts)
    if not train or not validation:
        # of a few files chance may put all on one side: then the last twentieth of their text is held back
        text = train or validation
        n_train = len(text) - int(len(text) * VALIDATION_SHARE)
        train, validation = text[:n_train], text[n_train:]
    return _bytes_array(train), _bytes_array(validation), left_out


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


def _digest(source: str | Path, train: Tokens, validation: Tokens, vocab_size: int) -> bytes:
    """See Corpus.digest. It reads everything once, so here is where a token outside the vocabulary is found."""
    sha256 = hashlib.sha256(f"{train.dtype.itemsize} {vocab_size} {len(train)} {len(validation)}\n".encode())
    for tokens in (train, validation):
        for block in blocks_of(tokens, _HASH_BLOCK):
            check_vocabulary(block, vocab_size, shown(source))
            sha256.update(block.data)
    return sha256.digest()
