"""Tables, lines and curves that fit their terminal: nothing wraps, and what matters least is left out first.

Members are strangers, and an escape or markup in a name must not act on the terminal: cells and the words of a line are cleaned
here (`observe.human.clean`), and nothing is given to rich as markup. Nothing is said by colour alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from legion_p2p.observe import human

GAP = 2  # blanks between columns
SPARKS = "▁▂▃▄▅▆▇█"
ASCII_SPARKS = "_.-~=+*#"

STYLES = {
    "alive": "green", "suspect": "yellow", "dead": "red", "training": "green", "waiting": "yellow", "joining": "yellow",
    "done": "cyan", "leaving": "yellow", "error": "red",
}  # fmt: skip


class Screen:
    """Draws again at every refresh of rich's Live, with the size that the terminal has at that moment."""

    def __init__(self, render: Callable[[int, int, bool], RenderableType]) -> None:
        """`render` takes the width, the height, and whether only ASCII can be shown."""
        self._render = render

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._render(options.max_width, console.height, options.ascii_only)


class Column(msgspec.Struct, frozen=True):
    """One column: its title, what it shows of a row, and which columns go before it when the terminal is narrow."""

    title: str
    cell: Callable[[Any], str]
    rank: int
    """0 always stays; the highest rank is left out first."""
    right: bool = True
    min_chars: int = 0
    """Room that is kept even while the texts are shorter, so that columns do not move when numbers grow."""
    max_chars: int = 14


def fit_table(columns: Sequence[Column], rows: Sequence[Any], width: int, *, ascii_only: bool = False) -> Table:
    """A table of `rows` no wider than `width`, without the columns that do not fit."""
    texts = [[_crop(human.clean(column.cell(row)), column.max_chars) for row in rows] for column in columns]
    needs = [
        max([cell_len(column.title), column.min_chars, *map(cell_len, cells)])
        for column, cells in zip(columns, texts, strict=True)
    ]
    shown = list(range(len(columns)))
    while sum(needs[i] + GAP for i in shown) - GAP > width and any(columns[i].rank for i in shown):
        shown.remove(max(shown, key=lambda i: (columns[i].rank, i)))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False, safe_box=ascii_only, header_style="bold")
    for i in shown:
        table.add_column(
            columns[i].title, no_wrap=True, overflow="crop", justify="right" if columns[i].right else "left", width=needs[i]
        )
    for row_idx in range(len(rows)):
        table.add_row(*(styled(texts[i][row_idx]) for i in shown))
    return table


def styled(word: str) -> Text:
    """A word in the colour of its meaning; the word itself says the same."""
    return Text(word, style=STYLES.get(word.strip(), ""), no_wrap=True, overflow="crop")


def line(*parts: str | Text | None, width: int, style: str = "") -> Text:
    """One line of parts separated by blanks; cut at `width`, never wrapped; whole parts go first."""
    kept: list[str | Text] = []
    used = 0
    for part in parts:
        if not part:
            continue
        need = cell_len(part.plain if isinstance(part, Text) else part) + (GAP if kept else 0)
        if kept and used + need > width:
            continue
        kept.append(part)
        used += need
    text = Text(" " * GAP).join([Text(human.clean(part)) if isinstance(part, str) else part for part in kept])
    text.truncate(width, overflow="crop")
    text.no_wrap = True
    text.overflow = "crop"
    if style:
        text.stylize(style)
    return text


def ends(left: Text, right: Text, width: int) -> Text:
    """`left` at the left edge and `right` at the right one; where both do not fit, only `left`."""
    gap = width - left.cell_len - right.cell_len
    return line(Text.assemble(left, " " * gap, right) if gap >= GAP else left, width=width)


def bar(fraction: float, width: int, *, ascii_only: bool = False) -> Text:
    """A progress bar of exactly `width` cells."""
    full = round(min(1.0, max(0.0, fraction)) * width)
    done, left = ("#", "-") if ascii_only else ("━", "─")
    return Text.assemble((done * full, "green"), (left * (width - full), "dim"), no_wrap=True)


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The course of `values` in at most `width` characters; high is high."""
    points = bucketed(list(enumerate(values)), width) if len(values) > width else list(values)
    sparks = ASCII_SPARKS if ascii_only else SPARKS
    known = [value for value in points if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span, top = (high - low) or 1.0, len(sparks) - 1
    return "".join(" " if value is None else sparks[round((value - low) / span * top)] for value in points)


def bucketed(
    points: Sequence[tuple[float, float]], n_buckets: int, x_range: tuple[float, float] | None = None
) -> list[float | None]:
    """The mean of the y of each of `n_buckets` equal pieces of the x axis; None where there is no point."""
    if not points:
        return [None] * n_buckets
    first, last = x_range or (points[0][0], points[-1][0])
    span = (last - first) or 1.0
    sums = [0.0] * n_buckets
    counts = [0] * n_buckets
    for x, y in points:
        i = min(n_buckets - 1, max(0, int((x - first) / span * n_buckets)))
        sums[i] += y
        counts[i] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def plot(curves: Iterable[tuple[str, Sequence[tuple[float, float]]]], width: int, height: int, x_max: float = 0.0) -> list[str]:
    """Curves of (x, y) as `height` lines of text of at most `width` characters, each drawn with its own character.

    Later curves lie above earlier ones. The y axis is labelled at both ends; x starts at 0.
    """
    drawn = [(mark, points) for mark, points in curves if points]
    ys = [y for _, points in drawn for _, y in points]
    if not ys or height < 2 or width < 20:
        return []
    low, high = min(ys), max(ys)
    labels = [f"{high:.2f}", f"{low:.2f}"]
    margin = max(map(len, labels))
    n_cells = width - margin - 2
    x_end = max(x_max, *(points[-1][0] for _, points in drawn)) or 1.0
    grid = [[" "] * n_cells for _ in range(height)]
    for mark, points in drawn:
        for x_idx, y in enumerate(bucketed(points, n_cells, (0.0, x_end))):
            if y is not None:
                y_idx = round((high - y) / ((high - low) or 1.0) * (height - 1))
                grid[y_idx][x_idx] = mark
    heads = [labels[0], *[""] * (height - 2), labels[1]]
    return [f"{head:>{margin}} |{''.join(cells)}".rstrip() for head, cells in zip(heads, grid, strict=True)]


def _crop(text: str, max_chars: int) -> str:
    return text if cell_len(text) <= max_chars else text[: max(1, max_chars - 2)] + ".."
