"""`Control`: what the user of a peer asks of it while it runs, from any thread."""

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from legion_p2p.core.control import Command, Finish, Leave, Pause, Resume, SetLimits
from legion_p2p.errors import ClosedError
from legion_p2p.observe.status import ControlStatus

if TYPE_CHECKING:  # torch takes seconds to load, and a command listens to signals before that
    from legion_p2p.train.bridge import PeerAccess


class Control:
    """Pauses a peer, limits it, or ends its training. Safe from any thread, and in signal handlers' threads.

    What is asked before the peer is in its run is kept until it is. After the peer has left nothing happens.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: PeerAccess | None = None
        self._kept: list[Command] = []
        self._leaving = threading.Event()

    def pause(self, for_s: float | None = None) -> None:
        """Train nothing for `for_s` seconds, or until `resume`. Training stops at the end of the step that is being made.

        What was trained is handed in, and the peer goes on serving others.
        """
        self.send(Pause(for_s))

    def resume(self) -> None:
        """Train again. Conditions that the user has set (`Peer.manners`) hold on."""
        self.send(Resume())

    def finish(self) -> None:
        """End training: what was trained is brought in, then `should_stop` of the run and of its optimizer is true."""
        self.send(Finish())

    def leave(self) -> None:
        """End training at once, as Ctrl+C does."""
        self._leaving.set()
        self.send(Leave())

    def limits(self, *, upload: str | None = None, download: str | None = None, max_cpu: str | None = None) -> None:
        """Other limits from now on: rates such as "5mbit", a share of the processors such as "50%", or "none".

        Raises: UsageError, where a limit has no allowed form.
        """
        self.send(SetLimits(upload, download, max_cpu))

    def send(self, command: Command) -> None:
        """Any of these as a value. Raises: UsageError, where a limit has no allowed form."""
        if isinstance(command, SetLimits):
            command.check()
        with self._lock:
            thread = self._thread
            if thread is None:
                self._kept.append(command)
                return
        with suppress(ClosedError):
            thread.call(thread.engine.control.obey, command)

    @property
    def status(self) -> ControlStatus:
        """What holds now. Raises: ClosedError, after the peer has left."""
        return ControlStatus() if self._thread is None else self._thread.call(self._thread.engine.control.status)

    def attach(self, thread: "PeerAccess") -> None:
        """The peer is in its run: it does what was asked before, and what will be asked."""
        with self._lock:
            self._thread = thread
            kept, self._kept = self._kept, []
        for command in kept:
            self.send(command)

    @property
    def leaving(self) -> bool:
        """It was asked to leave, by this."""
        return self._leaving.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was asked to leave, at the latest after `timeout_s`."""
        return self._leaving.wait(timeout_s)
