"""What is to be prepared: the files of each source, cut into tasks of about equal size that processes share."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from legion_p2p.errors import StoreError
from legion_p2p.files.content import PROBE_BYTES, description_of
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import opened
from legion_p2p.train.datasets.documents import Piece, hub_shards_of, kind_of_file, row_groups_of
from legion_p2p.train.datasets.source_names import HUB
from legion_p2p.train.text_files import files_below, packed_as

TASK_BYTES = 64 << 20  # read between two points at which work goes on after it was stopped: a minute at most
HUB_SHARD_BYTES = TASK_BYTES  # nobody knows how much it is: for the bar of the progress
MAX_TASKS = 1 << 20
MAX_FILES = 1 << 22  # of all sources


class Task(msgspec.Struct, frozen=True):
    """Pieces of one source, in order."""

    source: int
    pieces: tuple[Piece, ...]
    n_bytes: int


class Sources(msgspec.Struct, frozen=True):
    """All that is to be read."""

    tasks: tuple[Task, ...]
    n_bytes: int
    left_out: str
    """What of the folders is no text, in words; empty: nothing."""


def find_sources(names: tuple[str, ...], field: str) -> Sources:
    """What is behind these names, each a file, a folder, or a data set of the library datasets. `field`: of rows, where text is.

    Raises: StoreError, if there is nothing to read.
    """
    tasks: list[Task] = []
    left_out: Counter[str] = Counter()
    for i, name in enumerate(names):
        if name.startswith(HUB):
            tasks += [Task(i, (Piece(name, "hub", at, at + 1),), HUB_SHARD_BYTES) for at in range(hub_shards_of(name))]
            continue
        path = user_path(name)
        if kind_of(path) is FileKind.MISSING:
            raise StoreError(f"{shown(path)} does not exist: give files or folders of text, JSON lines or Parquet tables")
        before = len(tasks)
        tasks += _grouped(i, _pieces_below(path, field, left_out))
        if len(tasks) == before:
            there = ", ".join(f"{n} {what}" for what, n in left_out.most_common()) or "nothing"
            raise StoreError(f"{shown(path)} holds no text, but {there}")
        if len(tasks) > MAX_TASKS:
            raise StoreError(f"more than {MAX_TASKS} pieces of {TASK_BYTES} bytes: prepare the data in several parts")
    told = ", ".join(f"{n} {what}" for what, n in left_out.most_common())
    return Sources(tuple(tasks), sum(task.n_bytes for task in tasks), told)


def _pieces_below(path: Path, field: str, left_out: Counter[str]) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file, or of all files of a folder, with the bytes of each."""
    is_folder = kind_of(path) is FileKind.FOLDER
    for n_files, file in enumerate(files_below(path) if is_folder else [path]):
        if n_files >= MAX_FILES:
            raise StoreError(f"{shown(path)} holds more than {MAX_FILES} files: prepare the data in several parts")
        with opened(file) as probe:
            head = probe.read(PROBE_BYTES)
        kind = kind_of_file(file, head, field)
        if kind is None:
            if not is_folder:
                raise StoreError(
                    f"{shown(file)} is {description_of(head)}, where text, JSON lines or a Parquet table is expected"
                )
            left_out[description_of(head)] += 1
            continue
        if kind == "parquet":
            yield from _row_groups(file)
            continue
        size = os.stat(file).st_size
        if packed_as(head) is not None:
            yield Piece(str(file), kind), size
            continue
        for at in range(0, size, TASK_BYTES):
            end = at + TASK_BYTES
            yield Piece(str(file), kind, at, end if end < size else -1), min(TASK_BYTES, size - at)


def _row_groups(file: Path) -> Iterator[tuple[Piece, int]]:
    begin = n_bytes = 0
    sizes = row_groups_of(file)
    for i, size in enumerate(sizes):
        n_bytes += size
        if n_bytes >= TASK_BYTES or i + 1 == len(sizes):
            yield Piece(str(file), "parquet", begin, i + 1), n_bytes
            begin, n_bytes = i + 1, 0


def _grouped(source: int, pieces: Iterator[tuple[Piece, int]]) -> Iterator[Task]:
    """Small ones together, large ones alone."""
    some: list[Piece] = []
    n_bytes = 0
    for piece, size in pieces:
        if some and n_bytes + size > TASK_BYTES:
            yield Task(source, tuple(some), n_bytes)
            some, n_bytes = [], 0
        some.append(piece)
        n_bytes += size
    if some:
        yield Task(source, tuple(some), n_bytes)
