"""Where full-size packets vanish: some tunnels drop what is too long for them and tell nobody, an MTU black hole.

Small requests pass then, and every large transfer stalls. The sign of that is a connection that sends the same large segment
again and again in vain, while the other side is heard, and on which no large one has arrived before: else it is only slow. It is
closed, and from then on this process makes all its connections with small segments, in both directions, for 1 % more bytes.
Linux can find out by itself (net.ipv4.tcp_mtu_probing), but only root may tell it to.
"""

import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import trio

SMALL_SEGMENT_BYTES = 1200  # of 1280, which every IPv6 link passes, less the headers
# In a row; with 5 % loss that happens to one in 8,000 segments, and only the first large ones of a connection count.
RETRANSMITS = 3
# The other side was heard while they were in vain: these are less than 3 of them take, 1.4 s, and less than more take, 3 s.
HEARD_AT_FIRST_S, HEARD_LATER_S = 1.2, 2.0
WATCH_S = 0.5
YOUNG = 20  # looks at a new connection: on most, something large is sent in the first seconds or never
RARELY = 6  # only each sixth look is at the others as well
INFO = struct.Struct("=BBBB12xI4xI24xI64xQ64xI")  # the first part of tcp_info in linux/tcp.h; the last two since Linux 4.18
HEARD_S = 40.0  # a peer that was heard within so long before the stall is alive: longer than a stall takes to be noticed

T = TypeVar("T")

log = logging.getLogger("legion_p2p.net")


class _Options(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


class _Readable(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...

    def getpeername(self) -> Any: ...


class PacketSize:
    """What the sockets of one host are set to."""

    def __init__(self) -> None:
        self.is_small = False
        self._passed: WeakKeyDictionary[object, _Passed] = WeakKeyDictionary()
        self._n_looks = 0
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

    def vanishing(self, sockets: Iterable[tuple[T, _Readable]]) -> list[T]:
        """Of these connections, each with its socket, those on which large packets vanish. Only Linux tells."""
        self._n_looks += 1
        looks_at_all = self._n_looks % RARELY == 0
        infos = [
            (connection, sock, info)
            for connection, sock in sockets
            if (looks_at_all or not self._is_settled(sock)) and (info := _look(sock)) is not None
        ]
        silent_ms: dict[str, int] = {}
        for _, _, info in infos:
            silent_ms[info.host] = min(info.silent_ms, silent_ms.get(info.host, info.silent_ms))
        found = [
            (connection, info)
            for connection, sock, info in infos
            if not self._has_passed_large(sock, info)
            and info.is_in_vain
            and (
                self.is_small
                or silent_ms[info.host] < 1000 * (HEARD_LATER_S if info.n_retransmits > RETRANSMITS else HEARD_AT_FIRST_S)
            )
        ]
        for _, info in found:
            self.stalled(info.host, trio.current_time())
        return [connection for connection, _ in found]

    def _is_settled(self, sock: object) -> bool:
        """Whether it was looked at often before, or large segments have arrived."""
        before = self._passed.get(sock, _Passed())
        return before.is_large or before.n_looks >= YOUNG

    def _has_passed_large(self, sock: object, info: "_Info") -> bool:
        """Whether large segments of this connection have arrived: since the last look, or some time before."""
        before = self._passed.get(sock, _Passed())
        n_bytes, n_segments = info.acked_bytes - before.acked_bytes, info.n_delivered - before.n_delivered
        is_large = before.is_large or n_bytes > SMALL_SEGMENT_BYTES * n_segments > 0
        self._passed[sock] = _Passed(info.acked_bytes, info.n_delivered, is_large, before.n_looks + 1)
        return is_large

    def apply(self, sock: _Options) -> None:
        """Set a socket that is not connected yet."""
        option = getattr(socket, "TCP_MAXSEG", None)
        if self.is_small and option is not None:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, option, SMALL_SEGMENT_BYTES)
            except OSError as refused:  # it is closed, or this system does not allow it
                log.debug("TCP_MAXSEG: %s", refused)


@dataclass(frozen=True)
class _Info:
    """What the kernel says of a connection."""

    host: str
    silent_ms: int
    """Since it brought anything."""
    n_retransmits: int
    """Of the segment that it waits for, in a row."""
    is_in_vain: bool
    """It sends the same large segment again and again."""
    acked_bytes: int
    n_delivered: int
    """Segments."""


@dataclass(frozen=True)
class _Passed:
    """What had arrived of a connection at the last look."""

    acked_bytes: int = 0
    n_delivered: int = 0
    is_large: bool = False
    n_looks: int = 0


def _look(sock: _Readable) -> _Info | None:
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, INFO.size)
        _, _, retransmits, _, segment_bytes, n_unconfirmed, silent_ms, acked_bytes, n_delivered = INFO.unpack(info)
        host = str(sock.getpeername()[0])
        is_here = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except (OSError, ValueError, struct.error):  # it is closed, or this is another system
        return None
    if is_here:
        return None  # nothing is lost on the way: a program that is busy lets its kernel refuse what it has no room for
    is_in_vain = segment_bytes > SMALL_SEGMENT_BYTES and n_unconfirmed > 0 and retransmits >= RETRANSMITS
    return _Info(host, silent_ms, retransmits, is_in_vain, acked_bytes, n_delivered)
