"""Where this peer listens, and which addresses it tells others."""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from multiaddr import Multiaddr

from legion_p2p.core.identity import PeerId
from legion_p2p.net.ends import End
from legion_p2p.net.networks import is_loopback, own_hosts, own_loopbacks


class Listening:
    """The addresses to tell others."""

    def __init__(self, announced: Sequence[str]) -> None:
        self._announced = tuple(announced)
        self._hosts: tuple[str, ...] = ()
        self._shown: tuple[str, ...] = ()
        self._multiaddrs: list[Multiaddr] = []
        self.bound: list[str] = []
        self.circuits: Callable[[], tuple[str, ...]] = tuple
        """The circuits that lead to this peer."""
        self.mapped: Callable[[], tuple[int, ...]] = tuple
        """Ports that a router forwards to this machine, as the router says."""
        self.proven: tuple[str, ...] = ()
        """Where dials of others arrived."""

    def look(self) -> tuple[str, ...]:
        """This machine's addresses now, loopback excluded; what is told others follows them."""
        hosts = own_hosts()
        self._hosts = (*hosts, *own_loopbacks()) or ("127.0.0.1", "::1")
        return hosts

    def addresses(self) -> tuple[str, ...]:
        """Without /p2p/: those announced, or else what is listened on, a wildcard as the interfaces' addresses; then circuits;
        loopback last. Where dials are known to arrive comes first.
        """
        found = dict.fromkeys((*self._announced, *self.proven))
        if not self._announced:
            for address in self.bound:
                found.update(dict.fromkeys(self._expand(address)))
        direct = sorted(found, key=lambda a: (is_loopback(a), is_loopback(a) and a.startswith("/ip4/")))
        n_outside = sum(not is_loopback(address) for address in direct)
        return (*direct[:n_outside], *self.circuits(), *direct[n_outside:])

    def multiaddrs(self, peer: PeerId) -> list[Multiaddr]:
        """With /p2p/. Kept ready: libp2p asks for each message that it sends."""
        addresses = self.addresses()
        if addresses != self._shown:
            self._shown = addresses
            self._multiaddrs = [Multiaddr(f"{address}/p2p/{peer}") for address in addresses]
        return list(self._multiaddrs)

    def _expand(self, address: str) -> Iterable[str]:
        _, family, host, protocol, port = address.split("/")
        if host not in ("0.0.0.0", "::"):
            return (address,)
        if not self._hosts:
            self.look()
        hosts = [h for h in self._hosts if (":" in h) == (family == "ip6")]
        return tuple(f"/{family}/{h}/{protocol}/{port}" for h in hosts)

    def ports(self) -> frozenset[int]:
        """Those that are listened on."""
        return frozenset(int(address.split("/")[4]) for address in self.bound)

    @property
    def is_announced(self) -> bool:
        """The user says at which addresses this peer can be dialed."""
        return bool(self._announced)

    def forwarded(self) -> tuple[int, ...]:
        """Those that a router forwards to this machine, as the user or the router says."""
        return (*(int(address.split("/")[4]) for address in self._announced), *self.mapped())

    def near(self) -> tuple[End, ...]:
        """Where peers in the same home find this one."""
        expanded = [address.split("/") for bound in self.bound for address in self._expand(bound)]
        return tuple((host, int(port)) for _, _, host, _, port in expanded if not ip_address(host).is_loopback)

    def source(self, host: str) -> End | None:
        """The end to dial an IP address from, so that routers show the listening port; None: this peer listens on none such."""
        family = "ip6" if ":" in host else "ip4"
        for address in self.bound:
            _, bound_family, bound_host, _, port = address.split("/")
            if bound_family == family and not ip_address(bound_host).is_loopback:
                return bound_host, int(port)
        return None
