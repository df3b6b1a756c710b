"""This machine's place: its addresses, its networks, and what lies outside of them."""

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import psutil

from legion_p2p.core.dial_order import Network

MAX_HOSTS = 4096  # that are remembered: more than a peer has connections
LOOK_S = 2.0  # a look takes 0.3 ms, and some ask for every connection

Ip = IPv4Address | IPv6Address
ROUTES = "/proc/net/route"  # of Linux
MAX_ROUTES_BYTES = 1 << 20  # a router of the Internet has more; a peer is none


def own_hosts() -> tuple[str, ...]:
    """This machine's IP addresses where an interface is up, loopback excluded, IPv4 first; link-local IPv6 needs a zone, so it is
    left out.
    """
    found = [ip for ip, _ in _own_ips() if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified)]
    return tuple(sorted(dict.fromkeys(map(str, found)), key=lambda host: (":" in host, not ip_address(host).is_global)))


def own_loopbacks() -> tuple[str, ...]:
    """127.0.0.1 and ::1, as far as this machine has them: one with IPv6 alone may lack the former."""
    versions = {ip.version for ip, _ in _own_ips() if ip.is_loopback}
    return tuple(host for version, host in ((4, "127.0.0.1"), (6, "::1")) if version in versions)


def own_networks() -> tuple[Network, ...]:
    """The networks that this machine is in, loopback included, as of LOOK_S ago at most."""
    return _networks_at(int(time.monotonic() / LOOK_S))


@lru_cache(maxsize=1)
def _networks_at(_moment: int) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(network for _, network in _own_ips() if network is not None))


def is_elsewhere(host: str, networks: Iterable[Network]) -> bool:
    """Whether an IP address lies outside of all `networks`. A name is taken for one elsewhere."""
    ip = _ip_of(host)
    if ip is None:
        return host != "localhost"
    if ip.is_loopback or ip.is_link_local:
        return False
    return not any(ip.version == network.version and ip in network for network in networks)


@lru_cache(MAX_HOSTS)
def _ip_of(host: str) -> Ip | None:
    """None: a name. All connections are looked at every second, and reading an address takes longer than the rest of the look."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_loopback(address: str) -> bool:
    """Whether a multiaddr leads to the machine that dials it."""
    family, host = address.split("/")[1:3]
    return host == "localhost" if family.startswith("dns") else ip_address(host).is_loopback


def _own_ips() -> Iterator[tuple[Ip, Network | None]]:
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if name in states and not states[name].isup:
            continue
        for entry in addresses:
            try:
                ip = ip_address(entry.address.partition("%")[0])
            except ValueError:  # a hardware address
                continue
            try:
                network = ip_network(f"{ip}/{_prefix(entry.netmask or '')}", strict=False)
            except ValueError:  # a point-to-point link has none
                network = None
            yield ip, network


def _prefix(netmask: str) -> int | str:
    """The length of a network's prefix. IPv6 masks are written in full, which ip_network does not read."""
    if ":" not in netmask:
        return netmask
    return int(IPv6Address(netmask)).bit_count()


def gateways(client: str) -> tuple[str, ...]:
    """The routers that lead out of the IPv4 network of `client`, an address of this machine; where the system does not say which,
    the first address of that network, which most home routers have.
    """
    networks = [n for n in own_networks() if isinstance(n, IPv4Network) and ip_address(client) in n and n.prefixlen < 31]
    try:
        with open(ROUTES, encoding="ascii") as routes:
            found = _gateways_in(routes.read(MAX_ROUTES_BYTES))
    except (OSError, ValueError):  # another system than Linux
        found = [network[1] for network in networks]
    near = [gateway for gateway in found if any(gateway in network for network in networks)]
    return tuple(dict.fromkeys(map(str, near)))


def _gateways_in(routes: str) -> list[IPv4Address]:
    """Of the default routes in Linux' table: lines of interface, destination, gateway, ..., in hexadecimal of reversed bytes."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    return [
        IPv4Address(bytes.fromhex(row[2])[::-1]) for row in rows if len(row) > 3 and row[1] == "00000000" and row[2] != "00000000"
    ]
