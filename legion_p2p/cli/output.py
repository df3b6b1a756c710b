"""How `legion-ctl checkpoint` shows progress and results: bars, tables, JSON. rich is imported when it is needed."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from legion_p2p.cli.failures import DONE

if TYPE_CHECKING:
    from rich.table import Table


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, quiet: bool, unit: str = "") -> "Iterator[Callable[[int], None]]":
    """A bar on stderr, if that is a terminal; it appears with the first progress. `total` None: the total is unknown, so it
    counts what is done, in `unit`s.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda n: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from legion_p2p.observe.human import bytes_text, count_text

    clock = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), clock, console=console,
                   transient=True)  # fmt: skip
    task, n_done = bar.add_task(what, total=total, done="", start=False), 0

    def advance(n: int) -> None:
        nonlocal n_done
        if not n_done:
            bar.start()
            bar.start_task(task)
        n_done += n
        amount = bytes_text(n_done) if unit == "bytes" else f"{count_text(n_done)} {unit}"
        bar.update(task, completed=n_done, done=amount if total is None else f"{100 * n_done / max(1, total):>3.0f} %")

    try:
        yield advance
    finally:
        bar.stop()


def table_of(*columns: str) -> "Table":
    """An empty table; its first column is never wrapped."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def print_table(table: "Table") -> None:
    """On stdout, as wide as that is."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width: let every column be there
        console = Console(highlight=False, width=200)
    console.print(table)


def is_stdout(path: Path) -> bool:
    """Whether writing to `path` writes to stdout, as with /dev/stdout."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def print_json(value: Any, stream: TextIO | None = None) -> int:
    """One line of it on stdout, or on another stream; the exit code of what has succeeded."""
    import msgspec

    (stream or sys.stdout).write(msgspec.json.encode(value).decode() + "\n")
    return DONE
