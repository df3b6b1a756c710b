"""Preparing data: documents become token shards, by several processes, and goes on where it was stopped.

    sources  ->  tasks of about 64 MB  ->  parts/00012.json and its shards, each whole or not there  ->  the data set

What a task writes depends on nothing but its pieces and the settings, so any number of processes gives the same data set, with
the same id. Settings are written down first: a folder that holds another preparation is refused.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import msgspec

from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import make_folder, telling, write_whole
from legion_p2p.store.dataset_files import TOKENIZER, is_dataset, read_dataset
from legion_p2p.train.datasets.assemble import assemble
from legion_p2p.train.datasets.documents import Reading, texts_of
from legion_p2p.train.datasets.preparation import Preparation, Prepared
from legion_p2p.train.datasets.sources import Sources, Task
from legion_p2p.train.datasets.tokenizer import Tokenizer
from legion_p2p.train.datasets.work import PARTS, Work, begin_worker, do_task, read_part, work_on

SETTINGS = "preparing.json"
SUMMARY = "prepared.json"
MAX_SETTINGS_BYTES = 1 << 20
QUEUED_PER_PROCESS = 2
_OTHERS = {
    "settings": "of other sources, or with other settings",
    "tokenizer": "with another tokenizer",
    "files": "of other files, or of files that were changed since",
}


def prepare(
    settings: Preparation,
    found: Sources,
    tokenizer: Tokenizer,
    out: Path,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Prepared:
    """Write a data set into the folder `out`, or go on where that was stopped.

    `found`: what is behind the settings' sources. `progress` is told how many bytes of it were read since the last call.

    Raises: StoreError, naming the file and what is wrong with it; UsageError; DiskFullError.
    """
    settings.check()
    out = make_folder(out)
    _claim(out, settings, tokenizer, found)
    if not (out / SUMMARY).is_file():
        make_folder(out / PARTS)
        if tokenizer.raw:
            write_whole(out / TOKENIZER, tokenizer.raw)
        _run(Work(settings, tokenizer.raw, str(out)), tokenizer, found.tasks, processes, progress)
        parts = [part for i in range(len(found.tasks)) if (part := read_part(out, i)) is not None]
        if len(parts) < len(found.tasks):
            raise StoreError(f"{shown(out)}: parts of the data were removed while they were written")
        assemble(out, settings, tokenizer, [task.source for task in found.tasks], parts)
        cid, dataset = read_dataset(out)
        summary = Prepared(
            str(cid), dataset.n_tokens, sum(shard.n_tokens for shard in dataset.validation), len(dataset.train),
            sum(part.n_documents for part in parts), sum(part.n_broken for part in parts), found.left_out,
        )  # fmt: skip
        write_whole(out / SUMMARY, msgspec.json.encode(summary))
    with telling(out):
        if (out / PARTS).is_dir():
            shutil.rmtree(out / PARTS)
    return msgspec.json.decode(read_text(out / SUMMARY, MAX_SETTINGS_BYTES), type=Prepared)


def all_texts(settings: Preparation, tasks: Sequence[Task], max_chars: int) -> Iterator[str]:
    """The texts of all tasks, as they are read, to train a tokenizer; at most this many characters. Raises: StoreError."""
    reading = Reading(settings.field, settings.skip_broken)
    for task in tasks:
        for piece in task.pieces:
            for text, _ in texts_of(piece, reading):
                max_chars -= len(text)
                if max_chars < 0:
                    return
                yield text


def _claim(out: Path, settings: Preparation, tokenizer: Tokenizer, found: Sources) -> None:
    """Write down what is prepared here. Raises: UsageError, if something else is."""
    files = [(task, _times(task)) for task in found.tasks]
    ours = {
        "settings": msgspec.json.encode(settings).decode(), "tokenizer": hashlib.sha256(tokenizer.raw).hexdigest(),
        "files": hashlib.sha256(msgspec.json.encode(files)).hexdigest(),
    }  # fmt: skip
    path = out / SETTINGS
    if path.is_file():
        try:
            there = msgspec.json.decode(read_text(path, MAX_SETTINGS_BYTES), type=dict[str, str])
        except msgspec.DecodeError as bad:
            raise StoreError(f"{shown(path)} is not what was written there: {bad}; choose another folder") from bad
        if there == ours:
            return
        if is_dataset(out) or any((out / PARTS).glob("*.json")):
            told = next(text for name, text in _OTHERS.items() if there.get(name) != ours[name])
            raise UsageError(f"{shown(out)} holds data that was prepared {told}: choose another folder, or remove it")
    elif is_dataset(out) or any(out.glob("*.bin")):
        raise UsageError(f"{shown(out)} holds other data: choose another folder, or remove it")
    write_whole(path, msgspec.json.encode(ours))


def _times(task: Task) -> list[int]:
    with contextlib.suppress(OSError):
        return [os.stat(piece.path).st_mtime_ns for piece in task.pieces]
    return []


def _run(work: Work, tokenizer: Tokenizer, tasks: Sequence[Task], processes: int, progress: Callable[[int], None]) -> None:
    """Do what is not done yet."""
    waiting = []
    for i, task in enumerate(tasks):
        if read_part(Path(work.folder), i) is None:
            waiting.append((i, task))
        else:
            progress(task.n_bytes)
    if processes <= 1 or len(waiting) <= 1:
        for i, task in waiting:
            do_task(work, tokenizer, i, task)
            progress(task.n_bytes)
        return
    n_processes = min(processes, len(waiting))
    with ProcessPoolExecutor(n_processes, get_context("spawn"), begin_worker, (work,)) as pool:
        try:
            _share_out(pool, waiting, n_processes * QUEUED_PER_PROCESS, progress)
        except BaseException:  # an interrupt as well: what waits in the queue would still be done
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _share_out(pool: Executor, waiting: list[tuple[int, Task]], most: int, progress: Callable[[int], None]) -> None:
    left = iter(waiting)
    running = {pool.submit(work_on, i, task): task for i, task in itertools.islice(left, most)}
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            future.result()
            progress(task.n_bytes)
            for i, following in itertools.islice(left, 1):
                running[pool.submit(work_on, i, following)] = following
