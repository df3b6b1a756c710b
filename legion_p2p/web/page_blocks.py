"""What a page consists of, as plain values: the browser draws them, and knows nothing else of peers or runs.

Everything is text or a number. What a stranger has named is text like all other text; the page never takes it for HTML.
"""

from typing import Literal

import msgspec

Cell = str | int | float | bool | None
CellKind = Literal["text", "id", "int", "count", "bytes", "rate", "seconds", "ms", "percent", "loss", "clock"]
"""How the page writes a number or a text of a column; a CSV file has it as it is."""


class TableColumn(msgspec.Struct, frozen=True):
    name: str
    kind: CellKind = "text"


class RowAction(msgspec.Struct, frozen=True):
    """A button in a row: it sends `{"type": type, "cid": key of the row}`."""

    label: str
    type: str


class Table(msgspec.Struct, frozen=True, tag="table"):
    """Rows, the most important first; `n_more` were left out."""

    id: str
    section: str
    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    n_more: int = 0
    is_wide: bool = False
    """It has the width of the page for itself."""
    actions: tuple[RowAction, ...] = ()
    """Buttons in each row that has a key, where the page may change something."""
    keys: tuple[str, ...] = ()
    """Of each row: what its buttons send; empty: it has none."""


class Line(msgspec.Struct, frozen=True):
    """One curve: `y` over seconds since the beginning of the chart, and the step at each point, where there are steps."""

    label: str
    x: tuple[float, ...] = ()
    y: tuple[float | None, ...] = ()
    step: tuple[float, ...] = ()


class ChartMark(msgspec.Struct, frozen=True):
    """Something that happened `x` seconds after the beginning; `step`: at which step of the first line, where that is known."""

    x: float
    text: str
    step: float | None = None


class Chart(msgspec.Struct, frozen=True, tag="chart"):
    id: str
    section: str
    title: str
    unit: CellKind
    lines: tuple[Line, ...]
    marks: tuple[ChartMark, ...] = ()
    note: str = ""
    over: Literal["time", "step"] = "time"
    """What the page draws it over at first."""


class Facts(msgspec.Struct, frozen=True, tag="facts"):
    """Names and values."""

    id: str
    section: str
    title: str
    rows: tuple[tuple[str, str], ...]
    note: str = ""


class MapNode(msgspec.Struct, frozen=True):
    """One peer as the map shows it, in the middle if it is the peer itself."""

    id: str
    label: str
    region: str
    kind: str
    """What the connection to it runs over: direct, punched, relayed; empty: there is none."""
    relay: str = ""
    rtt_s: float | None = None
    n_shards: int = 0
    state: str = ""
    me: bool = False


class PeerMap(msgspec.Struct, frozen=True, tag="map"):
    id: str
    section: str
    title: str
    nodes: tuple[MapNode, ...]
    note: str = ""
    n_more: int = 0


class Prose(msgspec.Struct, frozen=True, tag="prose"):
    """Text, line by line; `is_code`: to be copied, or written by a model."""

    id: str
    section: str
    title: str
    text: str
    is_code: bool = False
    note: str = ""


Block = Table | Chart | Facts | PeerMap | Prose


class Figure(msgspec.Struct, frozen=True):
    """One of the numbers at the top."""

    label: str
    value: str


class Notice(msgspec.Struct, frozen=True):
    """What a person should know now, and what to do about it."""

    level: Literal["info", "warning", "error"]
    text: str
    advice: str = ""


class ControlState(msgspec.Struct, frozen=True):
    """What the page can change, as it is now."""

    paused: bool = False
    upload: str = ""
    download: str = ""
    """Limits in force, as they are written; empty: none."""


class Head(msgspec.Struct, frozen=True):
    title: str
    subtitle: str
    state: str
    figures: tuple[Figure, ...]
    notices: tuple[Notice, ...] = ()
    control: ControlState | None = None
    """None: this page changes nothing."""


class WebPage(msgspec.Struct, frozen=True):
    head: Head
    blocks: tuple[Block, ...]


def rows_of(rows: "list[tuple[Cell, ...]]", most: int) -> tuple[tuple[tuple[Cell, ...], ...], int]:
    """The first `most` rows, and how many are left out."""
    return tuple(rows[:most]), max(0, len(rows) - most)
