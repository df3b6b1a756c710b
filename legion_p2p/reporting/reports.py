"""The thread that reports a peer's numbers to trackers, every few seconds.

A tracker may take its time, or fail: training waits for none, and one that fails is reported once and left out.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from legion_p2p.errors import ClosedError
from legion_p2p.observe.events import Event
from legion_p2p.observe.human import short_id
from legion_p2p.observe.measures import measured
from legion_p2p.observe.status import Status
from legion_p2p.reporting.tracker import ReportedRun, Tracker
from legion_p2p.reporting.trackers import open_tracker

EVERY_S = 10.0  # a figure in a curve of hours; a peer's status is new twice a second
CLOSE_S = 30.0  # most that the end waits for a tracker that still sends
DEFAULT_FOLDER = "legion-reports"  # in the working folder, where nobody names one
VAL_LOSS = "val_loss"
Tell = Callable[[str], None]


class Reports:
    """Of one peer. Close it at the end: the last numbers go with that."""

    def __init__(
        self,
        names: Sequence[str],
        get_status: Callable[[], Status | None],
        *,
        tell: Tell,
        config: Mapping[str, Any] | None = None,
        folder: Path = Path(DEFAULT_FOLDER),
        every_s: float = EVERY_S,
        opened: Callable[[str, ReportedRun], Tracker] = open_tracker,
    ) -> None:
        """`names` are trackers that are usable here; `tell` is called with a line about one that fails."""
        self._waiting = list(names)
        self._get_status = get_status
        self._tell = tell
        self._config = dict(config or {})
        self._folder = folder
        self._every_s = every_s
        self._open = opened
        self._trackers: dict[str, Tracker] = {}
        self._step = 0
        self._val_loss: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="legion-reports", daemon=True)
        self._thread.start()

    def on_event(self, event: Event) -> None:
        """A sink for the peer's events: they have the loss on held-out text."""
        value = event.fields.get(VAL_LOSS)
        if isinstance(value, int | float):
            self._val_loss = float(value)

    def close(self) -> None:
        """Report once more, and end. Waits at most CLOSE_S."""
        self._over.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._tell(f"reports to {', '.join(self._trackers) or 'trackers'} took more than {CLOSE_S:.0f} s, and were given up")

    def _work(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()
        self._look()
        for name in list(self._trackers):
            self._tried(name, self._trackers[name].close)

    def _look(self) -> None:
        try:
            status = self._get_status()
        except ClosedError:  # it has left: what was told last was the last
            return
        if status is None or status.run is None:
            return
        for name in self._waiting:
            self._tried(name, partial(self._begin, name, status))
        self._waiting = []
        self._step = max(self._step, status.run_step)
        values = {measure.name: value for measure, value in measured(status)}
        if self._val_loss is not None:
            values[VAL_LOSS], self._val_loss = self._val_loss, None
        for name in list(self._trackers):
            self._tried(name, partial(self._trackers[name].report, self._step, values))

    def _begin(self, name: str, status: Status) -> None:
        assert status.run is not None
        started = time.strftime("%Y%m%d-%H%M%S")
        config = {"run": status.run.name, "run_id": status.run.id, "peer_id": status.peer_id, **self._config}
        run = ReportedRun(_plain(status.run.name), f"{short_id(status.peer_id)}-{started}", config, self._folder)
        self._trackers[name] = self._open(name, run)

    def _tried(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as bad:  # a tracker's library may raise anything, and training goes on
            self._trackers.pop(name, None)
            lines = str(bad).strip().splitlines() or [type(bad).__name__]
            self._tell(f"reports to {name} have ended: {lines[0][:200]}")


def _plain(name: str) -> str:
    """A run's name as a project's: a stranger chose it, and trackers make files and addresses of it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:100].strip(".-") or "run"
