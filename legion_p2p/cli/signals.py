"""What signals do to a command: the first asks it to leave in order, the second ends it."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from legion_p2p.train.control import Control

NOTHING: Mapping[int, Callable[[], None]] = {}
ECHO_S = 0.1  # `timeout` and some shells deliver one signal twice; a person's second Ctrl+C comes later


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[list[int]]:
    """SIGTERM, and SIGHUP unless it is ignored, unwind the command as Ctrl+C does: what it began is cleaned up.

    Yields a list that then holds the signal's number. Without a handler, process 1 of a container would ignore SIGTERM.
    """
    caught: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        caught.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a command that a shell started in the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {
        number: signal.signal(number, interrupt) for number in _ours() if number != signal.SIGINT
        and signal.getsignal(number) is signal.SIG_DFL
    }  # fmt: skip
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Signals:
    """SIGINT, SIGTERM and SIGHUP: the first asks to leave in order, the second leaves at once.

    Until `orderly()` has said whom to ask, there is nothing to leave, and the first one leaves at once as well. Signals are read
    from a socket by a thread of its own: Python itself would look at them only when the main thread comes out of a long operation
    of torch. Use on the main thread; the handlers that were there before come back afterwards.
    """

    def __init__(
        self, before_exit: Callable[[], None] = lambda: None, others: Mapping[int, Callable[[], None]] = NOTHING
    ) -> None:
        """`others`: what further signals do, by their numbers; as often as they come."""
        self._before_exit = before_exit
        self._others = others
        self._ask: Callable[[int], None] | None = None
        self._asked_at = 0.0
        self.caught = 0
        """Number of the first signal that came; 0: none."""

    def orderly(self, ask: Callable[[int], None]) -> None:
        """From now on the first signal calls `ask`, on another thread."""
        self._ask = ask

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in (*_ours(), *self._others)}
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._before:
            signal.signal(number, lambda *_: None)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, bad: BaseException | None, where: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in self._others:
                    self._others[number]()
                elif number in self._before:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        now = time.monotonic()
        if self._ask is not None and not self.caught:
            self.caught, self._asked_at = number, now
            self._ask(number)
        elif self._ask is None or now - self._asked_at > ECHO_S:
            with contextlib.suppress(Exception):
                self._before_exit()
            os._exit(128 + number)


def pausing_signals(control: "Control") -> dict[int, Callable[[], None]]:
    """SIGUSR1 pauses, SIGUSR2 resumes; nothing where the platform has no such signals."""
    named = (("SIGUSR1", control.pause), ("SIGUSR2", control.resume))
    return {int(getattr(signal, name)): action for name, action in named if hasattr(signal, name)}


def _ours() -> list[int]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup ignores it, and means it
        numbers.append(hangup)
    return [int(number) for number in numbers]
