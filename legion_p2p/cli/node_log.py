"""What a node that runs for months says on stderr: who can dial it when it starts, and then a line a day.

A log that nobody reads for weeks must still hold what counts. So: the start, the first peer, what becomes of other bootstrap
nodes (at most `MAX_CONTACT_LINES` times a day), the day's line, and the end.
"""

import sys
import time
from collections.abc import Callable, Sequence

from legion_p2p.core.addresses import AddressScope, scope_of
from legion_p2p.observe import human
from legion_p2p.observe.events import Event
from legion_p2p.observe.status import ServiceStatus, Status
from legion_p2p.observe.words import n_lost

DAY_S = 86_400.0
MAX_CONTACT_LINES = 10  # in a day; a node that comes and goes every minute is worth no more


class Notes:
    """Lines for people, on stderr, with the time."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))

    def __call__(self, text: str) -> None:
        self._write(f"{time.strftime('%H:%M:%S')} {text}")

    def event(self, event: Event) -> None:
        """The network changed."""
        from legion_p2p.observe.event_text import describe

        self._write(describe(event))


class ContactLines:
    """Lines about other bootstrap nodes, as many as a day may have."""

    def __init__(self, note: Callable[[str], None], now: Callable[[], float]) -> None:
        self._note = note
        self._now = now
        self._began = now()
        self._n_told = 0

    def __call__(self, text: str) -> None:
        now = self._now()
        if now - self._began >= DAY_S:
            self._began, self._n_told = now, 0
        self._n_told += 1
        if self._n_told < MAX_CONTACT_LINES:
            self._note(text)
        elif self._n_told == MAX_CONTACT_LINES:
            self._note(f"{text}; no more of this for a day, legion-ctl status shows how it is")


class DailyLine:
    """Decides when there is something to say of a node: at the first peer, and once a day."""

    def __init__(self, began: float) -> None:
        self._due_at = began + DAY_S
        self._had_peers = False
        self._before = ServiceStatus()

    def look(self, status: Status, now: float) -> str | None:
        """The line to write now; None: none."""
        if not self._had_peers and status.n_connected:
            self._had_peers = True
            return "the first peer is connected; from now on there is a line a day, and legion-ctl status at any time"
        if now < self._due_at:
            return None
        self._due_at += DAY_S
        service = status.service or ServiceStatus()
        before, self._before = self._before, service
        parts = [
            f"up {human.duration_text(status.uptime_s)}, {peers_text(status.n_connected)} connected",
            f"today {human.whole_text(service.n_connections - before.n_connections)} connections, "
            f"{human.whole_text(service.n_refused - before.n_refused)} refused, "
            f"{human.whole_text(service.n_questions - before.n_questions)} questions answered, "
            f"{human.bytes_text(service.relayed_bytes - before.relayed_bytes)} relayed",
        ]
        if n_lost(status):
            parts.append(f"{n_lost(status)} of {len(status.contacts)} other bootstrap nodes cannot be reached")
        return "; ".join(parts)


def peers_text(n: int) -> str:
    """`1 peer`, `12 peers`."""
    return f"{human.whole_text(n)} peer{'s' * (n != 1)}"


def reach_lines(addresses: Sequence[str], port: int) -> list[str]:
    """Which addresses whom can dial, and what to do where nobody outside can."""
    by_scope: dict[AddressScope, list[str]] = {}
    for address in addresses:
        by_scope.setdefault(scope_of(address), []).append(address.partition("/p2p/")[0])
    lines = [f"{scope.value} can dial {', '.join(by_scope[scope])}" for scope in AddressScope if scope in by_scope]
    if AddressScope.ANYWHERE not in by_scope:
        lines.append(
            f"no address of this machine is public: to let others in from outside, forward TCP port {port or 'PORT'} to it, and "
            f"say so with --announce /ip4/PUBLIC_ADDRESS/tcp/{port or 'PORT'}"
        )
    return lines
