"""Where full-size packets vanish: some tunnels drop what is too long for them and tell nobody, an MTU black hole.

Small requests pass then, and every large transfer stalls. A connection that takes nothing more, while the other side was heard a
moment ago, is a sign of that. From then on this process makes all its connections with small segments, in both directions; that
costs 1 % more bytes. Linux can find out by itself (net.ipv4.tcp_mtu_probing), but only root may tell it to.
"""

import logging
import socket
from typing import Protocol

import trio

SMALL_SEGMENT_BYTES = 1200  # of 1280, which every IPv6 link passes, less the headers
HEARD_S = 40.0  # a peer that was heard within so long before the stall is alive: longer than a stall takes to be noticed

log = logging.getLogger("legion_p2p.net")


class _Options(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


class PacketSize:
    """What the sockets of one host are set to."""

    def __init__(self) -> None:
        self.is_small = False
        self._listening: list[_Options] = []

    def listens(self, sock: _Options) -> None:
        """Connections that this socket accepts follow as well."""
        self._listening.append(sock)
        self.apply(sock)

    def stalled(self, host: str, heard_at: float) -> None:
        """A connection to `host` takes nothing more; something came from there at `heard_at`."""
        if self.is_small or trio.current_time() - heard_at > HEARD_S:
            return
        log.warning("large packets seem to vanish on the way to %s: this peer uses smaller ones from now on", host)
        self.is_small = True
        for sock in self._listening:
            self.apply(sock)

    def apply(self, sock: _Options) -> None:
        """Set a socket that is not connected yet."""
        option = getattr(socket, "TCP_MAXSEG", None)
        if self.is_small and option is not None:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, option, SMALL_SEGMENT_BYTES)
            except OSError as refused:  # it is closed, or this system does not allow it
                log.debug("TCP_MAXSEG: %s", refused)
