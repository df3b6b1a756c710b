"""What the demo shows: several peers of one run side by side, the lone trainer that they are compared with, and their curves."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from legion_p2p.dashboard.fit import Column, Screen, bar, ends, fit_table, line, plot
from legion_p2p.dashboard.live import REFRESH_PER_S, fraction_done
from legion_p2p.observe import human
from legion_p2p.observe.event_text import rounds_of
from legion_p2p.observe.history import History
from legion_p2p.observe.status import Status

SWARM_MARK, LONE_MARK = "o", "."
MAX_PLOT_LINES = 14


class LoneProgress(msgspec.Struct, frozen=True):
    """The progress of the peer that trains alone."""

    step: int
    loss: float | None = None
    tokens_per_s: float = 0.0
    target_steps: int | None = None
    state: str = "training"


class PeerRow(msgspec.Struct, frozen=True):
    """One peer of the swarm under the name that the viewer knows; `status` is None until it has said something."""

    label: str
    status: Status | None = None
    state: str = "starting"
    """What to show without a status, or when the process has ended."""


class SwarmStatus(msgspec.Struct, frozen=True):
    """All that the swarm's view shows. Curves are (step, loss)."""

    title: str
    phase: str = ""
    peers: tuple[PeerRow, ...] = ()
    lone: LoneProgress | None = None
    swarm_curve: tuple[tuple[float, float], ...] = ()
    lone_curve: tuple[tuple[float, float], ...] = ()
    elapsed_s: float = 0.0
    fraction: float | None = None
    remaining_s: float | None = None
    notes: tuple[str, ...] = ()


def render_swarm(swarm: SwarmStatus, *, width: int = 80, height: int = 24, ascii_only: bool = False) -> RenderableType:
    """The swarm in at most `height` lines of `width` characters."""
    clock = f"{human.seconds_text(swarm.elapsed_s)} elapsed"
    if swarm.remaining_s is not None:
        clock += f", {human.seconds_text(swarm.remaining_s)} left"
    head = [ends(Text.assemble((human.clean(swarm.title), "bold"), "  ", human.clean(swarm.phase)), Text(clock), width)]
    if swarm.fraction is not None:
        share = f" {human.percent_text(min(1.0, swarm.fraction)):>6}"
        head.append(Text.assemble(bar(swarm.fraction, width - len(share), ascii_only=ascii_only), share, no_wrap=True))
    rows: list[PeerRow | LoneProgress] = [*swarm.peers, *([swarm.lone] if swarm.lone else [])]
    foot = [_rounds(swarm, width), *(line(human.shorten(human.clean(note), width), width=width) for note in swarm.notes)]
    room = height - len(head) - len(foot) - 4  # two blanks, the table's title, the last line of the terminal
    shown = rows[: max(1, room)]
    columns = _COLUMNS if len(_regions(swarm)) > 1 else tuple(c for c in _COLUMNS if c is not _REGION)
    table = fit_table(columns, shown, width, ascii_only=ascii_only)
    curve = _curve(swarm, width, min(MAX_PLOT_LINES, room - len(shown) - 2))
    return Group(*head, Text(""), table, *foot, *([Text(""), *curve] if curve else []))


def _rounds(swarm: SwarmStatus, width: int) -> Text:
    told = [row.status for row in swarm.peers if row.status is not None]
    rounds = max(map(rounds_of, told), default=0)
    if not rounds:
        return line("no round yet", width=width)
    latest = max(told, key=rounds_of)
    averaged = f"last averaged {human.percent_text(latest.last_round.averaged_fraction)}" if latest.last_round else None
    agreed = [_agreed(members) for members in _regions(swarm).values()]
    model: str | None
    if len(agreed) > 1:
        of_each = " and ".join(f"{n} of {of}" for n, of in agreed)
        model = f"same model at {of_each} in {len(agreed)} regions"
    else:
        model = next((f"same model at {n} of {of} peers at this moment" for n, of in agreed if n > 1), None)
    return line(f"round {human.whole_text(rounds)}", averaged, model, width=width)


def _regions(swarm: SwarmStatus) -> dict[str, list[Status]]:
    """The peers that have reported their region, by region."""
    found: dict[str, list[Status]] = {}
    for status in sorted((row.status for row in swarm.peers if row.status), key=lambda status: status.region):
        if status.region:
            found.setdefault(status.region, []).append(status)
    return found


def _agreed(members: list[Status]) -> tuple[int, int]:
    """The largest number of peers that hold the same model, and the number of peers."""
    digests = [status.common_digest for status in members if status.common_digest]
    return max(map(digests.count, digests), default=0), len(members)


def _curve(swarm: SwarmStatus, width: int, height: int) -> list[Text]:
    curves = [(LONE_MARK, swarm.lone_curve), (SWARM_MARK, swarm.swarm_curve)]
    x_max = max((row.status.target_steps or 0 for row in swarm.peers if row.status), default=0)
    drawn = plot(curves, width, height, x_max)
    if not drawn:
        return []
    keys = [f"{SWARM_MARK} swarm" if swarm.swarm_curve else "", f"{LONE_MARK} alone" if swarm.lone_curve else ""]
    key = "loss by step:  " + "  ".join(filter(None, keys))
    return [line(key, width=width), *(line(text, width=width) for text in drawn)]


def _of(lone: Callable[[LoneProgress], str], peer: Callable[[Status], str]) -> Callable[[object], str]:
    """A cell of a row that is a peer, a peer not heard of yet, or the lone trainer."""

    def cell(row: object) -> str:
        if isinstance(row, LoneProgress):
            return lone(row)
        assert isinstance(row, PeerRow)
        return peer(row.status) if row.status is not None else human.NOTHING

    return cell


def _state(row: object) -> str:
    if isinstance(row, PeerRow):
        ended = row.state not in ("", "starting")
        return row.state if ended or row.status is None else row.status.state
    return row.state if isinstance(row, LoneProgress) else ""


def _label(row: object) -> str:
    if isinstance(row, PeerRow):
        return f"{row.label} {human.short_id(row.status.peer_id)}" if row.status else row.label
    return "alone"


def _owned(status: Status) -> str:
    return str(sum(shard.owner == status.peer_id for shard in status.shards))


def _step_text(step: int, target: int | None) -> str:
    return human.whole_text(step) + (f"/{human.whole_text(target)}" if target else "")


_REGION = Column("region", _of(lambda _: human.NOTHING, lambda s: s.region or human.NOTHING), 1, right=False, max_chars=8)
_COLUMNS = (
    Column("peer", _label, 0, right=False, max_chars=24),
    _REGION,
    Column("state", _state, 0, right=False, min_chars=8),
    Column(
        "step", _of(lambda m: _step_text(m.step, m.target_steps), lambda s: _step_text(s.step, s.target_steps)), 0, min_chars=6
    ),
    Column("loss", _of(lambda m: human.loss_text(m.loss), lambda s: human.loss_text(s.loss)), 0, min_chars=6),
    Column("tokens/s", _of(lambda m: human.count_text(m.tokens_per_s), lambda s: human.count_text(s.tokens_per_s)), 1),
    Column("sent", _of(lambda _: human.NOTHING, lambda s: human.bytes_text(s.sent_bytes)), 2, min_chars=7),
    Column("shards", _of(lambda _: human.NOTHING, _owned), 2),
    Column("received", _of(lambda _: human.NOTHING, lambda s: human.bytes_text(s.received_bytes)), 4, min_chars=8),
    Column("waited", _of(lambda _: human.NOTHING, lambda s: human.percent_text(s.blocked_fraction)), 5),
    Column("tokens", _of(lambda _: human.NOTHING, lambda s: human.count_text(s.tokens)), 6),
)


class SwarmView:
    """Keeps a swarm on the terminal while the context is open. All methods may be called from any thread and return at once.

    `total_s`, where given, is how long all of it is expected to take: the bar and the time left then follow the clock; otherwise
    they follow the slowest peer's steps.
    """

    def __init__(
        self,
        title: str,
        labels: tuple[str, ...] = (),
        *,
        total_s: float | None = None,
        console: Console | None = None,
        refresh_per_s: float = REFRESH_PER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._title = title
        self._total_s = total_s
        self._monotonic = monotonic
        self._began = monotonic()
        self._lock = threading.Lock()
        self._rows = {label: PeerRow(label) for label in labels}
        self._lone: LoneProgress | None = None
        self._swarm_curve = History()
        self._lone_curve = History()
        self._phase = ""
        self._notes: tuple[str, ...] = ()
        self._live = Live(
            Screen(self.render), console=self.console, refresh_per_second=refresh_per_s, transient=False, vertical_overflow="crop"
        )

    def update(self, label: str, status: Status | None = None, state: str = "") -> None:
        """What a peer reports of itself; `state` (`killed`, `done`) overrides it until the next update."""
        with self._lock:
            before = self._rows.get(label, PeerRow(label))
            self._rows[label] = PeerRow(label, status if status is not None else before.status, state)
            told = [row.status for row in self._rows.values() if row.status and row.status.loss is not None]
            if told:
                step = sum(s.step for s in told) / len(told)
                self._swarm_curve.add(step, sum(s.loss for s in told if s.loss is not None) / len(told))

    def lone(self, progress: LoneProgress) -> None:
        with self._lock:
            self._lone = progress
            if progress.loss is not None:
                self._lone_curve.add(progress.step, progress.loss)

    def phase(self, text: str, *notes: str) -> None:
        """The current phase, shown in the title, and lines below the table."""
        with self._lock:
            self._phase, self._notes = text, notes

    def snapshot(self) -> SwarmStatus:
        """All that is shown at this moment."""
        with self._lock:
            elapsed_s = self._monotonic() - self._began
            told = [row.status for row in self._rows.values() if row.status]
            if self._total_s:
                fraction: float | None = min(1.0, elapsed_s / self._total_s)
                remaining_s: float | None = max(0.0, self._total_s - elapsed_s)
            else:
                done = [share for status in told if (share := fraction_done(status)) is not None]
                left = [status.remaining_s for status in told if status.remaining_s is not None]
                fraction, remaining_s = min(done, default=None), max(left, default=None)
            return SwarmStatus(
                self._title, self._phase, tuple(self._rows.values()), self._lone,
                tuple(self._swarm_curve.points), tuple(self._lone_curve.points), elapsed_s, fraction, remaining_s, self._notes,
            )  # fmt: skip

    def render(self, width: int, height: int, ascii_only: bool) -> RenderableType:
        return render_swarm(self.snapshot(), width=width, height=height, ascii_only=ascii_only)

    def __enter__(self) -> Self:
        self._began = self._monotonic()
        self._live.start(refresh=True)  # a line that is printed before the first picture would come behind it
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self._live.stop()
