"""Counting what goes to and comes from machines outside of the local network: what a user pays for by volume."""

import socket
from collections.abc import Callable
from ipaddress import ip_address

import trio


class WideVolume:
    """Bytes of all connections of one host together, both ways. TLS and Noise count; headers of packets do not."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def meter(self, sock: "socket.socket | trio.socket.SocketType") -> Callable[[int], None]:
        """What a connection calls with each number of bytes that it has moved."""
        try:
            host = str(sock.getpeername()[0]).partition("%")[0]
        except OSError:  # the other side has closed it meanwhile
            return _ignore
        return self._count if is_wide(host) else _ignore

    def _count(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes


def is_wide(host: str) -> bool:
    """Whether an IP address is neither of this machine nor of a local network."""
    try:
        address = ip_address(host)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return not (address.is_private or address.is_loopback or address.is_link_local)


def _ignore(n_bytes: int) -> None:
    """Of a connection that stays in the local network."""
