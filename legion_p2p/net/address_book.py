"""Where peers may be found."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from legion_p2p.core.addresses import is_circuit, split_address, split_circuit
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UsageError
from legion_p2p.net.limits import MAX_ADDRESSES_PER_PEER, MAX_CIRCUITS_PER_PEER, MAX_KNOWN_PEERS

MAX_READ = 4096  # addresses whose form was checked that are remembered: every announcement repeats its own


class AddressBook:
    """Addresses of peers, the ones that worked or were heard of last first. Bounded; without /p2p/ parts."""

    def __init__(self) -> None:
        self._known: BoundedMap[PeerId, tuple[str, ...]] = BoundedMap(MAX_KNOWN_PEERS)

    def add(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Remember them, before those known so far. What is not an address that can be dialed is left out."""
        usable = tuple(filter(None, (dialable(address) for address in addresses)))
        if not usable:
            return
        self._known[peer] = _bounded(usable + self._known.get(peer, ()))

    def hear(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Remember what somebody else says about `peer`, behind what is known already: hearsay never displaces knowledge."""
        known = self._known.get(peer, ())
        fresh = tuple(a for a in map(dialable, addresses) if a is not None and a not in known)
        if fresh:
            self._known[peer] = _bounded(known + fresh)

    def forget(self, peer: PeerId, address: str) -> None:
        """It did not work. The only one known is kept all the same: its peer may be starting again."""
        known = self._known.get(peer, ())
        if len(known) > 1:
            self._known[peer] = tuple(other for other in known if other != address)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        return self._known.get(peer, ())


def _bounded(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, as many as are kept; circuits behind the others, and with places of their own: one that was announced a moment
    ago must not be displaced by addresses of interfaces.
    """
    kept = dict.fromkeys(addresses)
    direct = [address for address in kept if not is_circuit(address)]
    circuits = [address for address in kept if is_circuit(address)]
    return (*direct[:MAX_ADDRESSES_PER_PEER], *circuits[:MAX_CIRCUITS_PER_PEER])


@lru_cache(maxsize=MAX_READ)
def dialable(address: str) -> str | None:
    """The address without its /p2p/ part, or None if it cannot be dialed at all."""
    try:
        if is_circuit(address):
            circuit, _ = split_circuit(address)
            return str(circuit) if dialable(circuit.where) else None
        where, _ = split_address(address)
    except UsageError:
        return None
    _, family, host, _, port = where.split("/")
    if port == "0" or (family in ("ip4", "ip6") and ip_address(host).is_unspecified):
        return None
    return where
