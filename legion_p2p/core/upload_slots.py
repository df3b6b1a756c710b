"""How much a peer gives away at a time to those who fetch what it holds: it trains first.

    asked -> begun, while there is room -> over, when it is on its way
          -> turned away, and told when to come again

Never happens: more under way than the limits say, except for one thing that is larger by itself than `max_bytes`.
"""

from collections import Counter

import msgspec

from legion_p2p.core.identity import PeerId

FREE_BYTES = 64 << 10  # what is smaller costs less than being asked for it twice
GUESSED_BPS = 10e6  # while nothing was measured: what many home connections send
MIN_RETRY_S, MAX_RETRY_S = 0.5, 30.0
REMEMBERED_S = 30.0  # who was turned away is expected back for so long
MAX_REMEMBERED = 256


class UploadSlotLimits(msgspec.Struct, frozen=True):
    """What may be under way at a time."""

    max_gifts: int = 4
    """Answers. Four fill any connection; more only make each of them slower, and hold more memory."""

    max_bytes: int = 64 << 20
    """Of all of them together: two of the largest shards."""

    max_per_peer: int = 2
    """To one peer: the next one travels while it looks at the one before."""


FOR_MEMBERS = UploadSlotLimits(max_gifts=8, max_bytes=128 << 20, max_per_peer=4)
"""Of those who train: who is behind should not have to wait for those who are about to join."""


class UploadSlots:
    """The books of what is under way."""

    def __init__(self, limits: UploadSlotLimits) -> None:
        self._limits = limits
        self._n_gifts: Counter[PeerId] = Counter()
        self._n_bytes = 0
        self._turned_away: dict[PeerId, float] = {}

    @property
    def n_gifts(self) -> int:
        return self._n_gifts.total()

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def begin(self, peer: PeerId, n_bytes: int) -> bool:
        """Whether so many bytes may be given to `peer` now; if so they are under way, until `end`."""
        limits = self._limits
        if self._n_gifts[peer] >= limits.max_per_peer or self.n_gifts >= limits.max_gifts:
            return False
        if self._n_gifts.total() and self._n_bytes + n_bytes > limits.max_bytes:
            return False
        self._n_gifts[peer] += 1
        self._n_bytes += n_bytes
        self._turned_away.pop(peer, None)
        return True

    def end(self, peer: PeerId, n_bytes: int) -> None:
        """They are on their way, or never will be."""
        self._n_bytes -= n_bytes
        self._n_gifts[peer] -= 1
        if not self._n_gifts[peer]:
            del self._n_gifts[peer]

    def retry_s(self, peer: PeerId, rate_bps: float | None, now: float) -> float:
        """`peer` was turned away: when to come again, at this rate of sending. The more were turned away, the later."""
        self._turned_away.pop(peer, None)
        self._turned_away[peer] = now
        while now - next(iter(self._turned_away.values())) > REMEMBERED_S or len(self._turned_away) > MAX_REMEMBERED:
            del self._turned_away[next(iter(self._turned_away))]
        turn_s = 8 * self._n_bytes / (rate_bps or GUESSED_BPS)
        n_turns = 1 + (len(self._turned_away) - 1) / self._limits.max_gifts
        return min(max(turn_s * n_turns, MIN_RETRY_S), MAX_RETRY_S)
