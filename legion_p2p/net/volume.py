"""Counting what goes to and comes from other machines; apart, what leaves the local network: a user pays for that by volume."""

import socket
import time
from ipaddress import ip_address

import trio

from legion_p2p.core.traffic_ledger import NOTHING, HourlyBytes, SocketBytes


class SocketVolume:
    """Bytes of all connections of one host together. TLS and Noise count; headers of packets do not."""

    def __init__(self) -> None:
        self._wide, self._local = NOTHING, NOTHING
        self._by_hour = HourlyBytes()

    @property
    def wide_bytes(self) -> int:
        """Both ways, with machines outside of the local network."""
        return self._wide.sent_bytes + self._wide.received_bytes

    def counted(self) -> SocketBytes:
        """All of it."""
        total = self._wide.plus(self._local.sent_bytes, self._local.received_bytes)
        return SocketBytes(total, self._local, dict(self._by_hour.hours))

    def meter(self, sock: "socket.socket | trio.socket.SocketType") -> "SocketMeter":
        """What a connection tells of the bytes that it has moved."""
        try:
            host = str(sock.getpeername()[0]).partition("%")[0]
        except OSError:  # the other side has closed it meanwhile
            host = ""
        return SocketMeter(self, bool(host) and is_wide(host))

    def moved(self, is_wide: bool, sent_bytes: int, received_bytes: int) -> None:
        """By one connection."""
        if is_wide:
            self._wide = self._wide.plus(sent_bytes, received_bytes)
        else:
            self._local = self._local.plus(sent_bytes, received_bytes)
        self._by_hour.moved(sent_bytes, received_bytes, time.time())


class SocketMeter:
    """The bytes of one connection."""

    __slots__ = ("_is_wide", "_volume")

    def __init__(self, volume: SocketVolume, is_wide: bool) -> None:
        self._volume = volume
        self._is_wide = is_wide

    def sent(self, n_bytes: int) -> None:
        self._volume.moved(self._is_wide, n_bytes, 0)

    def received(self, n_bytes: int) -> None:
        self._volume.moved(self._is_wide, 0, n_bytes)


def is_wide(host: str) -> bool:
    """Whether an IP address is neither of this machine nor of a local network."""
    try:
        address = ip_address(host)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return not (address.is_private or address.is_loopback or address.is_link_local)
