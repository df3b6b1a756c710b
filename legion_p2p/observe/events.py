"""One event per thing that happened, with fields: `events.emit("round.closed", shard=3, version=7)`.

Code that wants them adds a sink; the metrics file, the plain log lines and the live view are sinks. A sink that fails is dropped
with a note on stderr: watching must never hurt what is watched.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

MAX_ERRORS_KEPT = 32  # what a status shows; older ones are in the metrics file

HANDING_OVER = "run.handing_over"
"""The event of a peer that leaves and has large shards to give away: `n_shards`, `left_bytes`, `remaining_s`."""

PHASE = "peer.phase"
"""The event of a peer on its way into a run that begins with something that takes a while: `text` says what."""

DASHBOARD = "dashboard.served"
"""The event of a page that is served: `address`, and privately the address with its token."""

Sink = Callable[["Event"], None]


class Event(msgspec.Struct, frozen=True):
    """What happened: a dotted name, seconds since the epoch, and its fields."""

    name: str
    at: float
    fields: dict[str, Any]
    is_error: bool = False
    private: str = ""
    """What only the person at this process may read, such as an address with a token: no file and no JSON has it."""

    def as_dict(self) -> dict[str, Any]:
        return {"event": self.name, "at": round(self.at, 6), **({"error": True} if self.is_error else {}), **self.fields}


class Events:
    """Where a peer's events go. May be used from several threads."""

    def __init__(self, wall_time: Callable[[], float] = time.time) -> None:
        self._wall_time = wall_time
        self._sinks: list[Sink] = []
        self._shown_by: list[Sink] = []
        self._lock = threading.Lock()
        self.errors: deque[Event] = deque(maxlen=MAX_ERRORS_KEPT)

    def add_sink(self, sink: Sink, *, shows: bool = True) -> None:
        """`shows` False: it only records what happened, so that whoever sits at this process has to be told in another way."""
        with self._lock:
            self._sinks.append(sink)
            if shows:
                self._shown_by.append(sink)

    @property
    def are_shown(self) -> bool:
        """Somebody listens that may tell a person."""
        return bool(self._shown_by)

    def emit(self, name: str, /, **fields: Any) -> None:
        self._send(Event(name, self._wall_time(), fields))

    def emit_private(self, name: str, private: str, /, **fields: Any) -> None:
        """As `emit`, with something that sinks may show to the person at this process, and that is written nowhere."""
        self._send(Event(name, self._wall_time(), fields, private=private))

    def error(self, name: str, text: str, /, **fields: Any) -> None:
        """Something went wrong that a person may want to know; it stays visible in the status."""
        event = Event(name, self._wall_time(), {"text": text, **fields}, is_error=True)
        self.errors.append(event)
        self._send(event)

    def _send(self, event: Event) -> None:
        with self._lock:
            sinks = list(self._sinks)
        for sink in sinks:
            try:
                sink(event)
            except Exception as broken:
                print(f"legion_p2p: an event sink failed and is dropped: {broken!r}", file=sys.stderr)
                with self._lock:
                    for sinks_left in (self._sinks, self._shown_by):
                        if sink in sinks_left:
                            sinks_left.remove(sink)
