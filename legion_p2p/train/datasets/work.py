"""One task of a preparation: its pieces become token shards. Runs in any process."""

import hashlib
import os
from pathlib import Path

import msgspec

from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import write_whole
from legion_p2p.train.datasets.documents import Reading, texts_of
from legion_p2p.train.datasets.preparation import Preparation, PreparedPart
from legion_p2p.train.datasets.sources import Task
from legion_p2p.train.datasets.token_shards import ShardWriter
from legion_p2p.train.datasets.tokenizer import Tokenizer

PARTS = "parts"
MAX_PART_BYTES = 1 << 20
BATCH_CHARS = 1 << 20  # tokenized at once
BATCH_TEXTS = 512


class Work(msgspec.Struct, frozen=True):
    """What a process must know."""

    settings: Preparation
    tokenizer: bytes
    folder: str

    def open_tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer, end=self.settings.end_of_text)


_worker: tuple[Work, Tokenizer] | None = None
"""Of a process that works on tasks."""


def begin_worker(work: Work) -> None:
    """Called first in each process."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # this process is one of several
    _worker = work, work.open_tokenizer()


def work_on(index: int, task: Task) -> None:
    """In a process that has begun."""
    assert _worker is not None
    do_task(*_worker, index, task)


def do_task(work: Work, tokenizer: Tokenizer, index: int, task: Task) -> None:
    """Write the shards of a task, and then the file that says that they are there. Raises: StoreError; DiskFullError."""
    settings = work.settings
    reading = Reading(settings.field, settings.skip_broken)
    stem = part_path(Path(work.folder), index).with_suffix("")
    sorter = _Sorter(tokenizer, stem, settings.validation)
    try:
        for piece in task.pieces:
            sorter.goes_on = piece.kind == "text" and piece.begin > 0
            for text, ends in texts_of(piece, reading):
                sorter.add(text, ends)
        made = sorter.finish(reading.n_broken)
    finally:
        sorter.abandon()
    write_whole(part_path(Path(work.folder), index), msgspec.json.encode(made))


class _Sorter:
    """Tokenizes texts in batches, and writes them where they belong."""

    def __init__(self, tokenizer: Tokenizer, stem: Path, validation: float) -> None:
        self._tokenizer = tokenizer
        self._validation = validation
        self._writers = {
            name: ShardWriter(stem.with_name(f"{stem.name}-{name}"), tokenizer.dtype, tokenizer.vocab_size)
            for name in ("train", "validation")
        }
        self.goes_on = False
        """The next document is the rest of one that another task has begun."""
        self._waiting: list[tuple[str, bool, ShardWriter]] = []
        self._n_chars = 0
        self._n_documents = 0
        self._writer = self._writers["train"]
        self._begins = True
        end = tokenizer.end_of_text
        self._end = None if end is None else tokenizer.ids([end])

    def add(self, text: str, ends: bool) -> None:
        """A document, or a piece of one."""
        if self._begins:
            self._n_documents += not self.goes_on
            self.goes_on = False
            self._writer = self._writers["validation" if is_held_back(text, self._validation) else "train"]
        self._begins = ends
        self._waiting.append((text, ends, self._writer))
        self._n_chars += len(text)
        if len(self._waiting) >= BATCH_TEXTS or self._n_chars >= BATCH_CHARS:
            self._write()

    def finish(self, n_broken: int) -> PreparedPart:
        self._write()
        train, validation = (self._writers[name].finish() for name in ("train", "validation"))
        return PreparedPart(self._n_documents, n_broken, tuple(train), tuple(validation))

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def _write(self) -> None:
        waiting, self._waiting, self._n_chars = self._waiting, [], 0
        for tokens, (_, ends, writer) in zip(self._tokenizer.encode([text for text, _, _ in waiting]), waiting, strict=True):
            writer.append(tokens)
            if ends and self._end is not None:
                writer.append(self._end)


def is_held_back(text: str, share: float) -> bool:
    """Whether a document that begins so is for validation: by content, so that nobody chooses, and wherever it comes from."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def part_path(out: Path, index: int) -> Path:
    """The file that says what a task has written."""
    return out / PARTS / f"{index:07d}.json"


def read_part(out: Path, index: int) -> PreparedPart | None:
    """None, if it is not done. Raises: StoreError."""
    path = part_path(out, index)
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(read_text(path, MAX_PART_BYTES), type=PreparedPart)
    except (msgspec.DecodeError, DecodeError) as bad:
        raise StoreError(f"{shown(path)} is not what was written there: {bad}; remove it, and start again") from bad
