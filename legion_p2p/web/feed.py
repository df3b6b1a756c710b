"""What is sent to browsers: the page, and then, again and again, what has changed in it.

A page is made only while a browser shows it, at most once in `EVERY_S` for all of them. What each client knows is a
`ClientState`. Nothing waits for a client in memory: one that reads slowly is sent fewer states."""

import time
from collections.abc import Callable

import msgspec

from legion_p2p.web.page_blocks import Chart, Head, Line, Notice, WebPage

EVERY_S = 1.0

Obey = Callable[[bytes], object]
"""Does what a command of the page says, as it came, and waits for nothing. Raises: LegionError, where it is none."""

_encoder = msgspec.json.Encoder()


class PageUpdate(msgspec.Struct, frozen=True):
    """What is new to one client. JSON of blocks stands in it as it was encoded for all."""

    head: msgspec.Raw
    order: tuple[str, ...]
    """Ids of all blocks, as they stand on the page."""
    blocks: tuple[msgspec.Raw, ...]
    """Blocks that are new or have changed; a chart comes without its points."""
    points: dict[str, tuple[Line, ...]]
    """Further points of the lines of a chart."""


class PageState(msgspec.Struct, frozen=True):
    """One state of the page, encoded."""

    head: msgspec.Raw
    blocks: dict[str, msgspec.Raw]
    lines: dict[str, tuple[Line, ...]]


class ClientState:
    """What one client has been told."""

    def __init__(self) -> None:
        self._blocks: dict[str, msgspec.Raw] = {}
        self._ends: dict[tuple[str, int], float] = {}
        self._labels: dict[str, tuple[str, ...]] = {}

    def update(self, shown: PageState) -> bytes:
        """What is new, as JSON."""
        changed = []
        for id, raw in shown.blocks.items():
            if self._blocks.get(id) != raw:
                self._blocks[id] = raw
                changed.append(raw)
        self._blocks = {id: self._blocks[id] for id in shown.blocks}
        points = {}
        for id, lines in shown.lines.items():
            self._begin_again_with_other_lines(id, tuple(line.label for line in lines))
            further = tuple(self._further(id, i, line) for i, line in enumerate(lines))
            if any(line.x for line in further):
                points[id] = further
        return _encoder.encode(PageUpdate(shown.head, tuple(shown.blocks), tuple(changed), points))

    def _begin_again_with_other_lines(self, id: str, labels: tuple[str, ...]) -> None:
        """A line that is new stands anywhere among the others: then the client, which drops what it has, gets all of them."""
        if self._labels.get(id, labels) != labels:
            self._ends = {(chart, i): end for (chart, i), end in self._ends.items() if chart != id}
        self._labels[id] = labels

    def _further(self, id: str, i: int, line: Line) -> Line:
        """The points of a line that come after what the client has."""
        end = self._ends.get((id, i))
        begin = 0 if end is None else next((k for k in range(len(line.x), 0, -1) if line.x[k - 1] <= end), 0)
        if line.x[begin:]:
            self._ends[id, i] = line.x[-1]
        return Line(line.label, line.x[begin:], line.y[begin:], line.step[begin:])


class Feed:
    """The newest state of a page."""

    def __init__(self, make: Callable[[], WebPage], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._monotonic = monotonic
        self._made_at = float("-inf")
        self._shown = encoded(WebPage(Head("", "", "", ()), ()))

    def look(self) -> PageState:
        """The page as it is now, or was a moment ago."""
        now = self._monotonic()
        if now - self._made_at >= 0.9 * EVERY_S:
            self._made_at = now
            try:
                self._shown = encoded(self._make())
            except Exception as broken:  # a page that cannot be made must not end what it is about
                notice = Notice("error", f"this page cannot be made: {broken!r}")
                self._shown = PageState(encoded(WebPage(Head("", "", "", (), (notice,)), ())).head, self._shown.blocks, {})
        return self._shown

    def refresh(self) -> None:
        """Something was changed: the next look should see it."""
        self._made_at = float("-inf")


def encoded(page: WebPage) -> PageState:
    """A page as JSON, the points of its charts apart."""
    blocks, lines = {}, {}
    for block in page.blocks:
        if isinstance(block, Chart):
            lines[block.id] = block.lines
            block = msgspec.structs.replace(block, lines=tuple(Line(line.label) for line in block.lines))
        blocks[block.id] = msgspec.Raw(_encoder.encode(block))
    return PageState(msgspec.Raw(_encoder.encode(page.head)), blocks, lines)
