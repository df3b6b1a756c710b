"""How much of what peers send is held before it is whole.

    arriving -> taken      `take`: there is room
             -> refused    the budget is used up, or the peer has its share of a budget that is half used
    taken    -> free       `give_back`

A stranger that begins long requests and never ends them fills its share, not the budget.

Never happens: more than `max_bytes` are held; a peer is refused while half of the budget is free, but for what is larger still.
"""

from collections import Counter
from dataclasses import dataclass

from legion_p2p.core.contact import Handler
from legion_p2p.core.identity import PeerId

SHARE = 8  # of the budget, the part of one peer once half of it is used: 64 MiB, which is one of the longest requests


TOO_LONG = "DecodeError"
"""The kind of the refusal of a request that is too long: it will never be taken, as one that cannot be read."""


@dataclass(frozen=True)
class ServedRequests:
    """What answers one service, and the longest request to it, in bytes."""

    handler: Handler
    longest: float


def too_long(n_bytes: int, served: ServedRequests) -> str:
    """Why a request is refused."""
    return f"a request of {n_bytes} bytes, the longest that can be meant for this peer has {served.longest:.0f}"


class ReceiveBudget:
    """The books of one host."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._of: Counter[PeerId] = Counter()
        self.n_bytes = 0
        """Held now, of all peers together."""

    def take(self, peer: PeerId, n_bytes: int) -> bool:
        """Hold this many more bytes of `peer`. False: there is no room, and nothing was taken."""
        after = self.n_bytes + n_bytes
        if after > self._max_bytes:
            return False
        if 2 * after > self._max_bytes and SHARE * (self._of[peer] + n_bytes) > self._max_bytes:
            return False
        self._of[peer] += n_bytes
        self.n_bytes = after
        return True

    def give_back(self, peer: PeerId, n_bytes: int) -> None:
        """This many of its bytes are held no longer."""
        self._of[peer] -= n_bytes
        self.n_bytes -= n_bytes
        if not self._of[peer]:
            del self._of[peer]
