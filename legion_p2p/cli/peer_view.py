"""What the user of `legion-peer` sees while it works."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from legion_p2p.cli.keys import HINT, Keys
from legion_p2p.cli.peer_options import Output
from legion_p2p.core.control import BY_USER, NO_LIMIT
from legion_p2p.core.rate_steps import higher_step, lower_step
from legion_p2p.core.units import rate_text
from legion_p2p.observe.event_text import handing_over_text
from legion_p2p.observe.events import HANDING_OVER, Event
from legion_p2p.observe.metrics import JsonSink, PlainSink
from legion_p2p.observe.status import Status
from legion_p2p.train.control import Control

if TYPE_CHECKING:
    from legion_p2p.dashboard import LiveView


class PeerView:
    """What the user sees while the peer works: a live view on a terminal, lines elsewhere, JSON where asked for, or nothing."""

    def __init__(self, output: Output, stream: TextIO) -> None:
        self.status: Status | None = None
        self._view: LiveView | None = None
        self._keys: Keys | None = None
        self._json = JsonSink(stream) if output.json else None
        self._plain: PlainSink | None = None
        if not output.json and not output.quiet and can_draw(stream):
            from rich.console import Console

            from legion_p2p import dashboard

            self._view = dashboard.LiveView(Console(file=stream, highlight=False))
        elif not output.json:
            self._plain = PlainSink(sys.stderr if output.quiet else stream, quiet=output.quiet)

    def on_event(self, event: Event) -> None:
        if event.name == HANDING_OVER and self._view is not None:
            self._view.note(handing_over_text(event))
        for sink in (self._json, self._plain, self._view.event if self._view else None):
            if sink is not None:
                try:
                    sink(event)
                except OSError:
                    self._reader_has_gone()

    def begin(self, what: str) -> None:
        """On a terminal, where a person waits: what the next seconds are spent on."""
        if self._view is not None:
            self._view.begin(what)

    def on_status(self, status: Status) -> None:
        self.status = status
        if self._view is not None:
            self._view.update(status)
        elif self._plain is not None:
            try:
                self._plain.progress(status)
            except OSError:
                self._reader_has_gone()

    def _reader_has_gone(self) -> None:
        """The reader of the lines (`| head -1`) is gone, or their disk is full: training goes on without them."""
        self._json = self._plain = None
        self.note("stdout has no reader any more; training goes on, and Ctrl+C ends it")

    def note(self, text: str) -> None:
        if self._view is not None:
            self._view.note(text)
        else:
            with contextlib.suppress(OSError):
                print(f"legion-peer: {text}", file=sys.stderr, flush=True)

    def listen(self, open_things: contextlib.ExitStack, control: Control) -> None:
        """Where a view is drawn, single keys tell the peer what to do."""
        if self._view is None:
            return

        def finish() -> None:
            self.note("finishing: pushing what was trained")
            control.finish()

        def leave() -> None:
            self.note("leaving the run; Ctrl+C leaves at once")
            control.leave()

        def limit(bps: float | None) -> None:
            text = NO_LIMIT if bps is None else rate_text(bps)
            control.limits(upload=text)
            self.note(f"upload limit: {text}")

        def lower() -> None:
            limit(lower_step(control.status.upload_bps, None if self.status is None else self.status.upload_bps))

        def higher() -> None:
            limit(higher_step(control.status.upload_bps))

        actions = {"p": lambda: toggle_pause(control), "f": finish, "q": leave, "-": lower, "+": higher}
        self._keys = open_things.enter_context(Keys(actions))
        if self._keys.can_read:
            self._view.hint(HINT)

    def restore_terminal(self) -> None:
        if self._keys is not None:
            self._keys.restore_terminal()
        if self._view is not None:
            self._view.restore_terminal()

    def __enter__(self) -> "PeerView":
        if self._view is not None:
            self._view.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._view is not None:
            self._view.note("")
            with contextlib.suppress(OSError):  # a terminal that was closed takes no last frame
                self._view.__exit__(*raised)


def toggle_pause(control: Control) -> None:
    """Pause, or end the user's pause."""
    if BY_USER in control.status.reasons:
        control.resume()
    else:
        control.pause()


def can_draw(stream: TextIO) -> bool:
    """True where a view can be drawn in place: a terminal that moves its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
