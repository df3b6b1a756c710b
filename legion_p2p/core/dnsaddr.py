"""Following `/dnsaddr/HOST/p2p/PEER_ID`: text records of the DNS that say where a peer is.

    ask for the texts of `_dnsaddr.HOST`
    `dnsaddr=/ip4/.../tcp/.../p2p/PEER_ID`   -> an address
    `dnsaddr=/dnsaddr/OTHER/p2p/PEER_ID`     -> OTHER is asked as well, at most MAX_DEPTH names further on
    any other text                           -> left out: another peer, or a transport that is not spoken here

Whoever controls the name can send a peer to any address, but the peer there has to prove that it has PEER_ID's key.
Never happens: more than MAX_NAMES questions for one address, or the same question twice.
"""

from collections import deque
from collections.abc import Sequence

from legion_p2p.core.addresses import DNSADDR, parse_peer_address
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UsageError

PREFIX = "dnsaddr="
MAX_DEPTH = 3  # a name that points to one of a provider, that points to one of a region
MAX_NAMES = 8  # asked for one address
MAX_TEXTS = 64  # of one name; what follows is not read
MAX_FOUND = 16  # addresses: a host has a few for each of its interfaces


class DnsaddrSearch:
    """The addresses of one peer below one name."""

    def __init__(self, host: str, peer: PeerId) -> None:
        self.addresses: list[str] = []
        """Found so far, without /p2p/."""
        self._peer = peer
        self._to_ask: deque[tuple[str, int]] = deque([(host, 0)])
        self._seen = {host.lower().removesuffix(".")}

    def next_question(self) -> tuple[str, int] | None:
        """The name whose texts are needed next, and how far it is from the first; None: the search is over."""
        return self._to_ask.popleft() if self._to_ask else None

    def take(self, texts: Sequence[str], depth: int) -> None:
        """What a name at this depth says."""
        for text in texts[:MAX_TEXTS]:
            if not text.startswith(PREFIX):
                continue
            try:
                where, peer = parse_peer_address(text.removeprefix(PREFIX))
            except UsageError:
                continue
            if peer != self._peer:
                continue
            if where.startswith(DNSADDR):
                self._follow(where.removeprefix(DNSADDR), depth + 1)
            elif where not in self.addresses and len(self.addresses) < MAX_FOUND:
                self.addresses.append(where)

    def _follow(self, host: str, depth: int) -> None:
        name = host.lower().removesuffix(".")
        if depth <= MAX_DEPTH and name not in self._seen and len(self._seen) < MAX_NAMES:
            self._seen.add(name)
            self._to_ask.append((host, depth))


def name_of(host: str) -> str:
    """The name that has the texts of `/dnsaddr/HOST`."""
    return f"_dnsaddr.{host}"
