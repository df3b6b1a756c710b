"""Which connections are taken where places are few: no network of one party takes most of them.

While fewer than half of the places are taken, anybody gets one. From then on the peers of one network (the /24 of an IPv4
address, the /48 of an IPv6 one) get at most a quarter of all. A host with hundreds of identities then fills its own quarter,
and newcomers from elsewhere still get in. Peers of this machine and of private networks are one party each by their address,
not by their network.

Never happens: a network is refused while half of the places are free; the books grow with connections that have ended.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from legion_p2p.core.reach_finder import network_of

SHARE = 4  # of all places, the part that one network gets where they are few


def party_of(host: str) -> str:
    """What one party may well have all of; empty for this machine, whose peers are not told apart."""
    ip = ip_address(host.partition("%")[0])
    if ip.is_loopback:
        return ""
    if ip.is_private or ip.is_link_local:
        return str(ip)
    return network_of(host)


class Places:
    """The connections that others made to this peer."""

    def __init__(self, n_places: int) -> None:
        self._n_places = n_places
        self._taken: Counter[str] = Counter()

    def admits(self, host: str, n_open: int) -> bool:
        """Whether a connection from there is accepted while this many are open, those of this peer included."""
        party = party_of(host)
        if not party or 2 * n_open < self._n_places:
            return True
        return SHARE * (self._taken[party] + 1) <= max(self._n_places, SHARE)

    @contextmanager
    def taken(self, host: str) -> Iterator[None]:
        """One place, for as long as the block lasts."""
        party = party_of(host)
        self._taken[party] += 1
        try:
            yield
        finally:
            self._taken[party] -= 1
            if not self._taken[party]:
                del self._taken[party]
