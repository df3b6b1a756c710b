"""Text out of files and folders: unpacked, in UTF-8, without what is no text."""

import bz2
import gzip
import io
import lzma
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import zstandard

from legion_p2p.errors import StoreError
from legion_p2p.files.content import PROBE_BYTES, UTF8_MARK, description_of, format_of, is_binary, wide_encoding_of
from legion_p2p.files.paths import FileKind, kind_of_mode, shown
from legion_p2p.files.reading import opened, reason_of

_UNPACKERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
_ZSTD_PIECE = 4096  # bytes given to the decompressor at a time: they unpack to 128 MiB at most, so that a limit can be kept
_BROKEN = (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)


@dataclass
class Folder:
    """The text files below a folder, and how many others there are, by what they are."""

    texts: list[bytes] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def left_out_text(self) -> str:
        """`2 of a PNG image, 1 empty`; empty where nothing was left out."""
        return ", ".join(f"{n} {what}" for what, n in self.left_out.most_common())


def packed_as(head: bytes) -> str | None:
    """How a file that begins so is packed; None: not in a way that is unpacked here."""
    kind = format_of(head)
    return kind if kind in _UNPACKERS or kind == "zstandard" else None


def plain_text(raw: bytes, where: str, max_bytes: int) -> bytes:
    """The text in UTF-8, unpacked and without a byte order mark. Raises: StoreError, saying what it is instead of text."""
    packed = packed_as(raw[:PROBE_BYTES])
    if packed is not None:
        raw = _unpack(raw, packed, where, max_bytes)
    head = raw[:PROBE_BYTES]
    wide = wide_encoding_of(head)
    if wide is not None:
        try:
            return raw.decode(wide).removeprefix("\ufeff").encode()
        except UnicodeDecodeError as bad:
            raise StoreError(f"{where}: it begins as {wide.upper()} and is not at byte {bad.start}; save it as UTF-8") from bad
    if is_binary(head):
        inside = f" inside {packed}" if packed else ""
        raise StoreError(
            f"{where} is {description_of(head)}{inside}, not text: --data takes text, a folder of it, or a .bin of token ids"
        )
    return raw.removeprefix(UTF8_MARK)


def read_folder(root: Path, max_bytes: int) -> Folder:
    """All text below `root`. Links are followed, a file or folder that is reached twice counts once, hidden ones do not.

    Raises: StoreError, if one cannot be read, or all together have more than `max_bytes`.
    """
    found, n_bytes = Folder(), 0
    for path in files_below(root):
        raw = read_file(path, max_bytes)
        if not raw:
            found.left_out["empty"] += 1
            continue
        try:
            text = plain_text(raw, shown(path), max_bytes)
        except StoreError:
            found.left_out[description_of(raw[:PROBE_BYTES])] += 1
            continue
        n_bytes += len(text)
        if n_bytes > max_bytes:
            raise StoreError(f"{shown(root)} holds more than {max_bytes} bytes of text: make a .bin of it (write_tokens)")
        found.texts.append(text)
    return found


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file of a folder, whole. Raises: StoreError."""
    with opened(path) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise StoreError(f"{shown(path)} holds more than {max_bytes} bytes: make a .bin of it (write_tokens)")
    return raw


def files_below(root: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Files below a folder, hidden ones left out; by way of links as well, each once, however it is reached.

    `without`: names of folders that are not looked into.
    """

    def fail(error: OSError) -> None:
        raise StoreError(f"cannot read {shown(error.filename)}: {reason_of(error)}") from error

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        if not _is_new(Path(folder), FileKind.FOLDER, seen):
            subfolders.clear()
            continue
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".") and s not in without)
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and _is_new(path, FileKind.FILE, seen):
                yield path


def _is_new(path: Path, kind: FileKind, seen: set[tuple[int, int]]) -> bool:
    """Whether something of that kind is there and was not reached in another way before."""
    try:
        found = os.stat(path)
    except OSError:  # a link that leads nowhere, or in a circle; or it was removed a moment ago
        return False
    identity = (found.st_dev, found.st_ino)
    if kind_of_mode(found.st_mode) is not kind or identity in seen:
        return False
    seen.add(identity)
    return True


def _unpack(raw: bytes, packed: str, where: str, max_bytes: int) -> bytes:
    try:
        text = _unzstd(raw, max_bytes) if packed == "zstandard" else _read_unpacked(raw, packed, max_bytes)
    except _BROKEN as bad:
        raise StoreError(f"{where} is {packed}, and cannot be unpacked: {bad}") from bad
    if len(text) > max_bytes:
        raise StoreError(f"{where} unpacks to more than {max_bytes} bytes: unpack it yourself, or make a .bin (write_tokens)")
    return text


def _read_unpacked(raw: bytes, packed: str, max_bytes: int) -> bytes:
    with _UNPACKERS[packed](io.BytesIO(raw)) as file:
        text: bytes = file.read(max_bytes + 1)
    return text


def _unzstd(raw: bytes, max_bytes: int) -> bytes:
    """Frame by frame. Its own reader takes a file that was cut off for a whole one. Raises: ZstdError; EOFError."""
    text, rest = bytearray(), raw
    while rest and len(text) <= max_bytes:
        frame = zstandard.ZstdDecompressor().decompressobj()
        at = 0
        while not frame.eof and at < len(rest) and len(text) <= max_bytes:
            text += frame.decompress(rest[at : at + _ZSTD_PIECE])
            at += _ZSTD_PIECE
        if not frame.eof and len(text) <= max_bytes:
            raise EOFError("it was cut off")
        rest = frame.unused_data + rest[at:]
    return bytes(text)
