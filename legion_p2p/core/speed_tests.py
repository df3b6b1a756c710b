"""Grants other peers tests of the bandwidth to this one: they send it some bytes, and get as many back.

Nobody gets more bytes than it has sent before, so that a test is no way to make this peer flood anybody. Each is bounded, and one
runs at a time. Few are granted to a peer, to a network and in all, so that a crowd of invented identities gets no more out of it
than one. While this peer's own transfers run, none is.
"""

from collections import deque

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach_finder import network_of

MAX_TEST_BYTES = 4 << 20  # each way: a second at 32 Mbit/s; on slower links TEST_S ends it before
TEST_S = 3.0  # that either side sends for: long enough for the window of a slow link to fill
PAUSE_S = 60.0  # between two tests of one peer
HOUR_S = 3600.0
MAX_PER_NETWORK = 4  # in an hour, of one /24 or /48
MAX_REMEMBERED = 1024  # peers and networks
PER_HOUR_OF_PEER = 12  # in all: at most 100 MB of a volunteer's connection, both ways together
PER_HOUR_OF_NODE = 120  # of a bootstrap node, which everybody knows and whose machine has more


class SpeedTests:
    """Grants or refuses."""

    def __init__(self, per_hour: int) -> None:
        """`per_hour`: tests in all; 0: none."""
        self._per_hour = per_hour
        self._is_running = False
        self._last: BoundedMap[PeerId, float] = BoundedMap(MAX_REMEMBERED)
        self._of_network: BoundedMap[str, deque[float]] = BoundedMap(MAX_REMEMBERED)
        self._granted: deque[float] = deque()

    def begin(self, peer: PeerId, host: str, is_busy: bool, now: float) -> str:
        """Why `peer`, which is at `host`, gets no test; empty: it begins. `is_busy`: transfers of this peer's own run."""
        if not self._per_hour:
            return "it takes no tests of bandwidth"
        if self._is_running or is_busy:
            return "it is busy at the moment"
        if now - self._last.get(peer, float("-inf")) < PAUSE_S:
            return f"one test in {PAUSE_S:.0f} s is granted"
        recent = self._of_network.setdefault(network_of(host), deque())
        for times in (recent, self._granted):
            while times and now - times[0] >= HOUR_S:
                times.popleft()
        if len(recent) >= MAX_PER_NETWORK or len(self._granted) >= self._per_hour:
            return "too many have asked in the last hour"
        self._last[peer] = now
        recent.append(now)
        self._granted.append(now)
        self._is_running = True
        return ""

    def end(self) -> None:
        """The test that was granted is over, however it ended."""
        self._is_running = False
