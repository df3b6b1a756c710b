"""What is seen while the demo runs: the live view on a terminal, lines elsewhere, or nothing."""

import contextlib
import time
from typing import TYPE_CHECKING, Any

from legion_p2p.observe import human
from legion_p2p.observe.event_text import rounds_of
from legion_p2p.observe.status import Status

if TYPE_CHECKING:
    from legion_p2p.cli.demo_plan import DemoPlan
    from legion_p2p.dashboard import SwarmView

LINE_EVERY_S = 10.0
MAX_NOTES = 3


class DemoView:
    """Told by the conductor from any thread; `close()` may be called again and again."""

    def __init__(self, plan: "DemoPlan", kind: str) -> None:
        self._began = time.monotonic()
        self._line_at = self._began
        self._lines = kind == "lines"
        self._phase = ""
        self._notes: list[str] = []
        self._statuses: dict[str, Status] = {}
        self._ended: set[str] = set()
        self._lone: Any = None
        self._view: SwarmView | None = None
        if kind == "view":
            from rich.console import Console

            from legion_p2p import dashboard

            labels = tuple(f"peer-{n + 1}" for n in range(plan.n_peers))
            places = f" at {plan.n_regions} places" if plan.n_regions > 1 else ""
            title = f"legion_p2p demo: {plan.n_peers} peers{places}, model {plan.preset}"
            self._view = dashboard.SwarmView(title, labels, console=Console(highlight=False))
            self._view.__enter__()

    def phase(self, text: str) -> None:
        self._phase = text
        self._say(text)
        self._refresh()

    def announce(self, text: str) -> None:
        """Something that stays on the screen, to be copied."""
        if self._view is not None:
            self._view.console.print(text, soft_wrap=True)
        else:
            self._say(text)

    def note(self, text: str) -> None:
        """Something that went wrong, or that the reader should know."""
        self._notes = [*self._notes, text][-MAX_NOTES:]
        self._say(text)
        self._refresh()

    def status(self, label: str, status: Status) -> None:
        self._statuses[label] = status
        if self._view is not None:
            self._view.update(label, status)

    def state(self, label: str, word: str) -> None:
        """How a peer's process ended."""
        self._ended.add(label)
        if self._view is not None:
            self._view.update(label, None, word)

    def lone(self, step: int, loss: float | None, tokens_per_s: float, target_steps: int, state: str = "training") -> None:
        from legion_p2p.dashboard import LoneProgress

        self._lone = LoneProgress(step, loss, tokens_per_s, target_steps, state)
        if self._view is not None:
            self._view.lone(self._lone)

    def tick(self) -> None:
        """A line about all of it now and then, where there is no view."""
        now = time.monotonic()
        if self._lines and self._statuses and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            self._say(self._progress())

    def close(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            with contextlib.suppress(OSError):
                view.__exit__(None, None, None)

    def close_at_once(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _progress(self) -> str:
        statuses = [self._statuses[label] for label in sorted(self._statuses)]
        losses = " ".join(human.loss_text(status.loss) for status in statuses)
        parts = [f"steps {' '.join(human.whole_text(s.step) for s in statuses)}", f"loss {losses}"]
        if self._lone is not None:
            parts.append(f"alone step {human.whole_text(self._lone.step)} loss {human.loss_text(self._lone.loss)}")
        parts.append(f"round {human.whole_text(max(map(rounds_of, statuses)))}")
        going_on = [status for label, status in self._statuses.items() if label not in self._ended]
        parts.append(f"{human.count_text(sum(s.tokens_per_s for s in going_on))} tokens/s")
        parts.append(f"sent {human.bytes_text(sum(s.sent_bytes for s in statuses))}")
        regions = sorted({s.region for s in statuses if s.region})
        if len(regions) > 1:
            parts.append(f"regions {' '.join(s.region or human.NOTHING for s in statuses)}")
        left = [s.remaining_s for s in going_on if s.remaining_s is not None]
        if left:
            parts.append(f"{human.seconds_text(max(left))} left")
        return "; ".join(parts)

    def _say(self, text: str) -> None:
        if self._lines:
            with contextlib.suppress(OSError):
                print(f"{human.seconds_text(time.monotonic() - self._began):>5} {text}", flush=True)

    def _refresh(self) -> None:
        if self._view is not None:
            self._view.phase(self._phase, *self._notes)
