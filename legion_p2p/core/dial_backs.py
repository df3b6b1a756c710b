"""Which requests to dial back are granted: "dial me where you see me come from, at these ports".

Nobody is dialed but the address that the request came from: whoever asks cannot point this peer at a third party. It is one short
connection for each port, for each peer at most once in PAUSE_S, and few for each network and in all, so that a crowd of invented
identities gets no more out of it than one.
"""

from collections import deque

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach_finder import network_of

MAX_PORTS = 3  # that are tried for one request: the listening port, the one seen outside, and one that a router forwards
PAUSE_S = 5.0  # between two requests of one peer that are granted; honest ones wait twice as long
WINDOW_S = 60.0
MAX_PER_NETWORK = 12  # granted in a window to one /24 or /48: a campus whose peers all start at once waits for its turn
MAX_IN_ALL = 60  # granted in a window; each costs 20 ms of CPU here
MAX_REMEMBERED = 1024  # peers and networks


class DialBacks:
    """Grants or refuses."""

    def __init__(self) -> None:
        self._last: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED)
        self._of_network: BoundedMap[str, deque[float]] = BoundedMap(MAX_REMEMBERED)
        self._granted: deque[float] = deque()

    def ask(self, peer: PeerId, host: str, n_ports: int, now: float) -> str:
        """Why `peer`, whose request came from `host`, is not dialed; empty: it is."""
        if not 1 <= n_ports <= MAX_PORTS:
            return f"{n_ports} ports, 1 to {MAX_PORTS} are allowed"
        if now - self._last.get(peer, float("-inf")) < PAUSE_S:
            return f"one request in {PAUSE_S:.0f} s is granted"
        recent = self._of_network.setdefault(network_of(host), deque())
        for times in (recent, self._granted):
            while times and now - times[0] >= WINDOW_S:
                times.popleft()
        if len(recent) >= MAX_PER_NETWORK or len(self._granted) >= MAX_IN_ALL:
            return "too many ask at the moment"
        self._last[peer] = now
        recent.append(now)
        self._granted.append(now)
        return ""
