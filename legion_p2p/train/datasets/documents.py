"""Documents out of files: plain text, JSON lines, Parquet tables, packed or not; and out of data sets of the library datasets.

All with bounded memory.

A long text comes in pieces that end at line breaks; whatever is broken is told by file and line, and can be left out.
"""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec
import zstandard

from legion_p2p.config.forms import in_short
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.content import PROBE_BYTES, UTF8_MARK, description_of, is_binary, wide_encoding_of
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import opened
from legion_p2p.train.datasets.source_names import HUB
from legion_p2p.train.text_files import packed_as

PIECE_BYTES = 1 << 20  # of a text, tokenized at once
MAX_ROW_BYTES = 64 << 20  # of a line of JSON; more is a file that is none
ZSTD_PIECE = 4096  # bytes given to the decompressor at a time: they unpack to 128 MiB at most
MAX_ZSTD_WINDOW = 1 << 27  # what `zstd --long` takes unless told otherwise
PARQUET_ROWS = 256  # read at once: documents have some kilobytes, the longest some megabytes
NO_PARQUET = 'Parquet tables are read by pyarrow, which is not installed here: pip install "legion_p2p[data]"'

NO_DATASETS = 'it is read by the library datasets, which is not installed here: pip install "legion_p2p[data]"'
Kind = Literal["text", "jsonl", "parquet", "hub"]
_JSON_LINES = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_BROKEN = (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)
_UNPACKERS: dict[str, Any] = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}


class Piece(NamedTuple):
    """A part of a file: bytes, or row groups of a Parquet table, or shards of a data set; `end` -1: to its end."""

    path: str
    kind: Kind
    begin: int = 0
    end: int = -1


class Text(NamedTuple):
    """A document, or a piece of a long one."""

    text: str
    ends: bool
    """The document ends here."""


class Reading(msgspec.Struct):
    """How documents are read, and what was left out of them."""

    field: str = "text"
    """Of a row, in JSON lines and tables."""
    skip_broken: bool = False
    """Leave out rows that cannot be read, and count them."""
    n_broken: int = 0

    def broken(self, where: str, what: str) -> None:
        """Raises: StoreError, unless such rows are left out."""
        if not self.skip_broken:
            raise StoreError(f"{where}: {what}; --skip-broken leaves such rows out")
        self.n_broken += 1


def kind_of_file(path: Path, head: bytes, field: str) -> Kind | None:
    """What a file holds, by its name and its first bytes; None: no text. A .json holds rows, if its first line is one."""
    name = path.name.lower()
    if head.startswith(b"PAR1"):
        return "parquet"
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    if name.endswith(_JSON_LINES):
        return "jsonl"
    if not head or (packed_as(head) is None and is_binary(head)):
        return None
    return "jsonl" if name.endswith(".json") and _begins_with_row(path, field) else "text"


def _begins_with_row(path: Path, field: str) -> bool:
    line = next(_lines_of(Piece(str(path), "jsonl"), PIECE_BYTES), b"")
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get(field), str)


def texts_of(piece: Piece, reading: Reading) -> Iterator[Text]:
    """The documents of a piece. Raises: StoreError, saying what is broken, and where."""
    if piece.kind == "parquet":
        return _from_parquet(piece, reading)
    if piece.kind == "hub":
        return _from_hub(piece, reading)
    return _from_jsonl(piece, reading) if piece.kind == "jsonl" else _from_text(piece, reading)


def row_groups_of(path: Path) -> list[int]:
    """The bytes of each row group of a Parquet table. Raises: StoreError; UsageError, without pyarrow."""
    with closing(_open_parquet(path)) as table:
        return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


def hub_shards_of(name: str) -> int:
    """In how many parts a data set can be read. Raises: StoreError; UsageError, without the library."""
    return int(_open_hub(name).num_shards)


def _from_hub(piece: Piece, reading: Reading) -> Iterator[Text]:
    rows = _open_hub(piece.path)
    n_row = 0
    try:
        for i in range(piece.begin, piece.end):
            for row in rows.shard(num_shards=rows.num_shards, index=i):
                n_row += 1
                yield from _from_row(row.get(reading.field), row, f"{shown(piece.path)}, row {n_row} of shard {i}", reading)
    except StoreError:
        raise
    except Exception as bad:  # networks, servers, formats: the library raises errors of many kinds
        raise StoreError(f"{shown(piece.path)}: cannot be read after row {n_row} of shard {piece.begin}: {bad}") from bad


def _open_hub(name: str) -> Any:
    """`hf:NAME`, `hf:NAME:CONFIG`, either with `@SPLIT`."""
    try:
        from datasets import load_dataset
    except ImportError as bad:
        raise UsageError(f"{shown(name)}: {NO_DATASETS}") from bad
    named, _, split = name.removeprefix(HUB).partition("@")
    named, _, config = named.partition(":")
    try:
        return load_dataset(named, config or None, split=split or "train", streaming=True)
    except Exception as bad:  # as above
        raise StoreError(f"{shown(name)}: no data set that can be read: {bad}") from bad


def _from_text(piece: Piece, reading: Reading) -> Iterator[Text]:
    where = shown(piece.path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending: list[str] = []
    n_bytes = n_pending = 0
    for line in _lines_of(piece, PIECE_BYTES):
        if piece.begin + n_bytes == 0:
            line = line.removeprefix(UTF8_MARK)
            if wide_encoding_of(line[:PROBE_BYTES]) is not None or is_binary(line[:PROBE_BYTES]):
                raise StoreError(f"{where} is {description_of(line[:PROBE_BYTES])}, where text in UTF-8 is expected")
        try:
            pending.append(decoder.decode(line))
        except UnicodeDecodeError as bad:
            reading.broken(f"{where}, near byte {piece.begin + n_bytes + bad.start}", "not text in UTF-8")
            decoder.reset()
            pending.append(line.decode(errors="replace"))
        n_bytes += len(line)
        n_pending += len(line)
        if n_pending >= PIECE_BYTES:
            yield Text("".join(pending), False)
            pending, n_pending = [], 0
    if n_bytes or piece.begin:
        yield Text("".join(pending), piece.end < 0)


def _from_jsonl(piece: Piece, reading: Reading) -> Iterator[Text]:
    for n_line, line in enumerate(_lines_of(piece, MAX_ROW_BYTES), start=1):
        if not line.strip():
            continue
        told = f"{shown(piece.path)}, line {n_line}" + (f" after byte {piece.begin}" if piece.begin else "")
        if len(line) >= MAX_ROW_BYTES:
            raise StoreError(f"{told}: a row of {MAX_ROW_BYTES} bytes or more; is it a file of JSON lines, one row a line?")
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
            reading.broken(told, f"not JSON: {bad}")
            continue
        yield from _from_row(row.get(reading.field) if isinstance(row, dict) else None, row, told, reading)


def _from_row(text: object, row: object, told: str, reading: Reading) -> Iterator[Text]:
    if not isinstance(text, str):
        has = f"; it has {in_short(tuple(row)[:8])}" if isinstance(row, dict) else ""
        reading.broken(told, f"no text under {reading.field!r}{has}")
        return
    for at in range(0, len(text), PIECE_BYTES):
        yield Text(text[at : at + PIECE_BYTES], at + PIECE_BYTES >= len(text))


def _from_parquet(piece: Piece, reading: Reading) -> Iterator[Text]:
    where = shown(piece.path)
    with closing(_open_parquet(Path(piece.path))) as table:
        names = table.schema_arrow.names
        if reading.field not in names:
            raise UsageError(f"{where} has no column {reading.field!r}, but {', '.join(names[:20])}: name one with --field")
        groups = range(piece.begin, table.metadata.num_row_groups if piece.end < 0 else piece.end)
        n_row = 0
        try:
            for batch in table.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=[reading.field]):
                for value in batch.column(0).to_pylist():
                    n_row += 1
                    yield from _from_row(value, None, f"{where}, row {n_row} from row group {piece.begin}", reading)
        except OSError as bad:  # what pyarrow raises for damaged pages
            raise StoreError(f"{where}: damaged after row {n_row} from row group {piece.begin}: {bad}") from bad


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as bad:
        raise UsageError(f"{shown(path)}: {NO_PARQUET}") from bad
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as bad:
        raise StoreError(f"{shown(path)} is no whole Parquet table: {bad}") from bad


def _lines_of(piece: Piece, max_bytes: int) -> Iterator[bytes]:
    """The lines that begin in a piece. A line of more than `max_bytes` comes in parts."""
    with opened(Path(piece.path)) as file:
        packed = packed_as(file.peek(PROBE_BYTES)[:PROBE_BYTES])
        try:
            with closing(_unpacked(file, packed)) as lines:
                if piece.begin:
                    lines.seek(piece.begin - 1)
                    while (rest := lines.readline(max_bytes)) and not rest.endswith(b"\n"):
                        pass  # that line belongs to the piece before
                is_whole = True
                while not is_whole or piece.end < 0 or lines.tell() < piece.end:
                    line = lines.readline(max_bytes)
                    if not line:
                        break
                    yield line
                    is_whole = line.endswith(b"\n")
        except _BROKEN as bad:
            what = f"is {packed}, and cannot be unpacked" if packed else "cannot be read"
            raise StoreError(f"{shown(piece.path)} {what}: {bad}") from bad


def _unpacked(file: IO[bytes], packed: str | None) -> IO[bytes]:
    if packed is None:
        return file
    if packed == "zstandard":
        return io.BufferedReader(_ZstdStream(file))
    unpacked: IO[bytes] = _UNPACKERS[packed](fileobj=file) if packed == "gzip" else _UNPACKERS[packed](file)
    return unpacked


class _ZstdStream(io.RawIOBase):
    """Frame by frame. The library's own reader takes a file that was cut off for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        self._ready = self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and (data := self._rest or self._file.read(ZSTD_PIECE)):
            self._rest = b""
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()
            self._ready = self._frame.decompress(data)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        if not self._ready and self._frame is not None:
            raise EOFError("it was cut off")
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n
