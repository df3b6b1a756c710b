"""When to try for a direct connection to a peer that is reached through a relay.

The first time soon, because the relay carries meanwhile and nobody waits; after each failure later, because most pairs of routers
that do not let a hole be punched never will. A change of either side's network makes all attempts worth it again.

Can never happen: two attempts for one peer at a time; more than MAX_AT_ONCE attempts; an attempt before its pause is over.
"""

from collections import deque
from collections.abc import Iterable

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

FIRST_S = 1.0  # after the circuit was made: requests that wait for it go first
PAUSES_S = (15.0, 120.0, 900.0, 3600.0)  # after the first failure, the second, ...; the last one stays
MAX_AT_ONCE = 4  # attempts; each dials a few addresses for some seconds
MAX_REMEMBERED = 1024  # peers whose failures are remembered
AGREE_PAUSE_S = 10.0  # between two attempts that one peer asks for; honest ones wait longer
WINDOW_S = 60.0
MAX_AGREED = 30  # attempts in a window that others ask for; each is a few packets to an address that they name


class Punches:
    """The peers to try, and when."""

    def __init__(self) -> None:
        self._due_at: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED)
        self._n_failed: BoundedMap[PeerId, int] = BoundedMap(MAX_REMEMBERED)
        self._trying: set[PeerId] = set()
        self._agreed: deque[float] = deque()
        self._agreed_at: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED)

    def poll(self, relayed: Iterable[PeerId], now: float) -> PeerId | None:
        """The next of these peers to try; `failed` or `succeeded` follows. None: no peer is due."""
        for peer in relayed:
            due_at = self._due_at.get(peer)
            if due_at is None:
                due_at = self._due_at[peer] = now + FIRST_S
            if due_at <= now and peer not in self._trying and len(self._trying) < MAX_AT_ONCE:
                self._trying.add(peer)
                return peer
        return None

    def failed(self, peer: PeerId, now: float) -> None:
        """No hole was punched."""
        self._trying.discard(peer)
        n_failed = self._n_failed[peer] = self._n_failed.get(peer, 0) + 1
        self._due_at[peer] = now + PAUSES_S[min(n_failed, len(PAUSES_S)) - 1]

    def succeeded(self, peer: PeerId) -> None:
        """There is a direct connection; should it end, it may be tried for again soon."""
        self._trying.discard(peer)
        self._due_at.pop(peer, None)
        self._n_failed.pop(peer, None)

    def agrees(self, peer: PeerId, now: float) -> bool:
        """Whether to dial as `peer` asks, at the address that it names: seldom, because that may be somebody else's."""
        while self._agreed and now - self._agreed[0] >= WINDOW_S:
            self._agreed.popleft()
        if len(self._agreed) >= MAX_AGREED or now - self._agreed_at.get(peer, float("-inf")) < AGREE_PAUSE_S:
            return False
        self._agreed.append(now)
        self._agreed_at[peer] = now
        return True

    def forget(self) -> None:
        """This side's network has changed: nothing that failed before says anything."""
        self._due_at.clear()
        self._n_failed.clear()
