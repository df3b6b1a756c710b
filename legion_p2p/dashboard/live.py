"""What one peer shows on a terminal while it trains.

`render_peer` turns the frozen status into something that rich prints; `LiveView` keeps it on the screen. The view is drawn in
place by a thread of its own a few times a second, from the last status given: neither training nor the network waits for it.
"""

import math
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from legion_p2p.dashboard.fit import Column, Screen, bar, ends, fit_table, line, sparkline
from legion_p2p.observe import human
from legion_p2p.observe.event_text import JOIN_WITH, describe, rounds_of
from legion_p2p.observe.events import DASHBOARD, PHASE, Event
from legion_p2p.observe.history import History
from legion_p2p.observe.status import ErrorStatus, MemberStatus, Status
from legion_p2p.observe.words import (
    alone_text,
    connection_text,
    doing,
    failed_text,
    is_alone,
    left_text,
    own_left_text,
    privacy_text,
    relayed_text,
    scores_text,
)

REFRESH_PER_S = 4  # more looks no smoother and costs a core's percent each
MAX_RECENT = 3
MAX_PHASES = 8
ERROR_SHOWN_S = 60.0  # an error leaves the view after so long; `legion-ctl status` and metrics.jsonl keep it
MIN_MEMBER_ROWS = 3


def members_in_order(status: Status) -> list[MemberStatus]:
    """This peer first, then the living, then the rest; each group by id, so that no row jumps."""
    alive = {"ALIVE": 0, "SUSPECT": 0, "DEAD": 1}
    return sorted(
        status.members, key=lambda m: (m.peer_id != status.peer_id, alive.get(m.liveness.upper(), 1), human.short_id(m.peer_id))
    )


def member_columns(status: Status) -> tuple[Column, ...]:
    """The columns of a table of members; those with a high rank go first where the terminal is narrow."""
    connections = {connection.peer_id: connection for connection in status.connections}

    def way(member: MemberStatus) -> str:
        """direct, punched, or the peer that relays it."""
        return connection_text(connections.get(member.peer_id)).removeprefix("relayed ")

    def rate(member: MemberStatus) -> str:
        connection = connections.get(member.peer_id)
        return human.rate_text(None if connection is None else connection.rate_bps)

    return (
        Column("peer", lambda m: human.short_id(m.peer_id) + (" (me)" if m.peer_id == status.peer_id else ""), 0, right=False),
        Column("region", lambda m: human.clean(m.region) or human.NOTHING, 4, right=False, max_chars=12),
        Column("state", doing, 0, right=False, min_chars=8),
        Column("step", lambda m: human.whole_text(m.step), 0, min_chars=6),
        Column("loss", lambda m: human.loss_text(m.loss), 1, min_chars=6),
        Column("tokens/s", lambda m: human.count_text(m.tokens_per_s), 2),
        Column("shards", lambda m: human.whole_text(m.shards_owned), 3),
        Column("via", way, 4, right=False),
        Column("sent", lambda m: human.bytes_text(m.sent_bytes), 5, min_chars=7),
        Column("received", lambda m: human.bytes_text(m.received_bytes), 6, min_chars=8),
        Column("rtt", lambda m: human.NOTHING if m.rtt_s is None else f"{1000 * m.rtt_s:.0f} ms", 7),
        Column("rate", rate, 7),
        Column("tokens", lambda m: human.count_text(m.tokens), 8),
    )


def fraction_done(status: Status) -> float | None:
    """The share of its work that this peer has done; None where the work has no end."""
    if status.target_steps:
        return status.step / status.target_steps
    if status.remaining_s is not None and status.uptime_s + status.remaining_s > 0:
        return status.uptime_s / (status.uptime_s + status.remaining_s)
    return None


def render_peer(
    status: Status,
    *,
    width: int = 80,
    height: int = 24,
    ascii_only: bool = False,
    losses: Sequence[float] = (),
    notes: Sequence[str] = (),
    is_error_recent: bool = True,
) -> RenderableType:
    """One peer in at most `height` lines of `width` characters. `losses` is the course of the loss, `notes` what else to say.

    The last error is shown where it `is_error_recent`.
    """
    head = _head(status, width, ascii_only, losses)
    foot = _foot(status, width, notes, status.errors[-1] if status.errors and is_error_recent else None)
    members = members_in_order(status)
    rows = max(MIN_MEMBER_ROWS, height - len(head) - len(foot) - 4)  # blank, title, "and n more", last line of the terminal
    table = fit_table(member_columns(status), members[:rows], width, ascii_only=ascii_only)
    more = [line(f"and {len(members) - rows} more members", width=width, style="dim")] if len(members) > rows else []
    return Group(*head, Text(""), table, *more, *foot)


def _head(status: Status, width: int, ascii_only: bool, losses: Sequence[float]) -> list[Text]:
    name = human.clean(status.run.name, 40) if status.run else "no run yet"
    run_id = f"({human.short_id(status.run.id)})" if status.run else ""
    clock = f"{human.seconds_text(status.uptime_s)} elapsed"
    if own_left_text(status) and status.state not in ("done", "leaving"):
        clock += f", {own_left_text(status)}"
    elif status.target is not None and not status.target.reached and status.state not in ("done", "leaving"):
        clock += f", {left_text(status.target)}"
    title = Text.assemble((name, "bold"), (f" {run_id}  " if run_id else "  "), (human.clean(status.state), "bold"))
    target = f"/{human.whole_text(status.target_steps)}" if status.target_steps else ""
    facts = line(
        f"step {human.whole_text(status.step)}{target}",
        f"loss {human.loss_text(status.loss)}",
        f"{human.count_text(status.tokens_per_s)} tokens/s",
        f"sent {human.bytes_text(status.sent_bytes)}",
        f"received {human.bytes_text(status.received_bytes)}",
        *([] if status.mfu is None else [f"MFU {human.percent_text(status.mfu)}"]),
        f"{human.count_text(status.tokens)} tokens",
        f"waited {human.percent_text(status.blocked_fraction)}",
        width=width,
    )
    lines = [ends(title, Text(clock), width), facts]
    if status.privacy is not None:
        lines.append(line(privacy_text(status.privacy), width=width))
    fraction = fraction_done(status)
    if fraction is not None:
        share = f" {human.percent_text(min(1.0, fraction)):>6}"
        lines.append(Text.assemble(bar(fraction, width - len(share), ascii_only=ascii_only), share, no_wrap=True))
    if len(losses) > 1:
        label = "loss "
        ends_at = f" {losses[0]:.2f} to {losses[-1]:.2f}"
        curve = sparkline(losses, max(8, width - len(label) - len(ends_at)), ascii_only=ascii_only)
        lines.append(line(label + curve + ends_at, width=width))
    if status.test is not None:
        lines.append(line(f"right answers: {scores_text(status.test)}", width=width))
    lines.append(round_line(status, width))
    return lines


def round_line(status: Status, width: int) -> Text:
    """The rounds so far, and how much of the last one was averaged."""
    last = status.last_round
    if is_alone(status):
        told = f"round {human.whole_text(rounds_of(status))}" if last else "no round yet"
        return line(told + (": nobody else is in this run" if status.run else ""), width=width)
    if last is None:
        return line("no round yet", width=width)
    of = f" ({last.n_included} of {last.n_expected} members)" if last.n_expected else ""
    averaged = f"averaged {human.percent_text(last.averaged_fraction)}{of}"
    return line(
        f"round {human.whole_text(rounds_of(status))}:",
        Text(averaged, style="" if last.averaged_fraction >= 1 else "yellow"),
        f"last shard {last.shard} of {len(status.shards)}",
        None if status.agreement is None else f"agreement {status.agreement:.2f}",
        f"model {status.common_digest[:8]}" if status.common_digest else None,
        width=width,
    )


def _foot(status: Status, width: int, notes: Sequence[str], last: ErrorStatus | None) -> list[Text]:
    lines: list[Text] = []
    alone = alone_text(status)
    if alone:
        lines += [line(piece, width=width, style="yellow") for piece in textwrap.wrap(alone, width, break_long_words=True)]
    elif status.last_round and status.last_round.failed:
        failed = status.last_round.failed
        also = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        lines.append(line(human.shorten(failed_text(failed[0], status, width) + also, width), width=width, style="yellow"))
    if relayed_text(status):
        lines.append(line(human.shorten(relayed_text(status), width), width=width, style="dim"))
    if last is not None:
        text = f"error at {human.clock_text(last.at)}: {human.clean(human.short_ids(last.text))}"
        lines.append(line(human.shorten(text, width), width=width, style="red"))
    lines += [line(human.shorten(human.clean(note), width), width=width, style="dim") for note in notes]
    return [Text(""), *lines] if lines else []


def phase_lines(phases: Sequence[tuple[str, float]], now: float) -> list[str]:
    """The phases of joining: what the peer does, since when, and how long each phase took."""
    if not phases:
        return ["legion-peer is starting"]
    ends = [*(began for _, began in phases[1:]), now]
    lines = [f"legion-peer is starting, since {human.seconds_text(now - phases[0][1])}"]
    lines += (
        f"  {human.duration_text(round(end - began, 1)):>8}  {text}" for (text, began), end in zip(phases, ends, strict=True)
    )
    return lines


class LiveView:
    """Keeps one peer's status on the terminal while the context is open; what it showed last stays.

    `update` may be called from any thread and returns at once. `event` is a sink for `Events`: until the first status comes, it
    shows what happens on the way into the run.
    """

    def __init__(
        self,
        console: Console | None = None,
        refresh_per_s: float = REFRESH_PER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._losses = History()
        self._recent: deque[str] = deque(maxlen=MAX_RECENT)
        self._note = ""
        self._hint = ""
        self._monotonic = monotonic
        self._phases: list[tuple[str, float]] = []
        self._last_error: ErrorStatus | None = None
        self._error_came_at = -math.inf
        self._live = Live(
            Screen(self.render), console=self.console, refresh_per_second=refresh_per_s, transient=False, vertical_overflow="crop"
        )

    def update(self, status: Status) -> None:
        with self._lock:
            self._status = status
            last = status.errors[-1] if status.errors else None
            if last != self._last_error:
                self._last_error, self._error_came_at = last, self._monotonic()
            if status.loss is not None:
                self._losses.add(status.step, status.loss)

    def event(self, event: Event) -> None:
        if event.name in (JOIN_WITH, DASHBOARD):  # above the view, where it stays and can be copied
            self._live.console.print(describe(event), soft_wrap=True)
            return
        if event.name == PHASE:
            self.begin(str(event.fields.get("text", "")))
            return
        with self._lock:
            self._recent.append(describe(event))

    def begin(self, what: str) -> None:
        """While joining: what the next seconds are spent on."""
        with self._lock:
            self._phases = [*self._phases[1 - MAX_PHASES :], (what, self._monotonic())]

    def note(self, text: str) -> None:
        """A line under everything else, until the next one; empty: none."""
        with self._lock:
            self._note = text

    def hint(self, text: str) -> None:
        """A last line, that stays: which keys there are."""
        with self._lock:
            self._hint = text

    def render(self, width: int, height: int, ascii_only: bool) -> RenderableType:
        with self._lock:
            status, note, recent = self._status, self._note, tuple(self._recent)
            hint = [self._hint] if self._hint and status is not None else []
            losses = [y for _, y in self._losses.points]
            phases, now = tuple(self._phases), self._monotonic()
            is_error_recent = now - self._error_came_at < ERROR_SHOWN_S
        notes = ([note] if note else []) if status and status.state != "joining" else [*recent, *([note] if note else [])]
        notes += hint
        if status is None:
            lines = [*phase_lines(phases, now), *notes]
            return Group(*(line(human.shorten(human.clean(text), width), width=width) for text in lines))
        return render_peer(
            status,
            width=width,
            height=height,
            ascii_only=ascii_only,
            losses=losses,
            notes=notes,
            is_error_recent=is_error_recent,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)  # a line that is printed before the first picture would come behind it
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        self._live.stop()

    def restore_terminal(self) -> None:
        """Show the cursor again, for a process that ends without closing this."""
        if self.console.is_terminal:
            self.console.file.write("\x1b[?25h\n")
            self.console.file.flush()
