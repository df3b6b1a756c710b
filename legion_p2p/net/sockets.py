"""The open sockets of one host: counted, tuned, and closed at once.

A write is done wholly, or the connection is closed: libp2p's own leaves a half-written frame behind when a write is cancelled,
which garbles all that follows.
"""

import errno
import logging
import socket
from ipaddress import ip_address
from typing import Protocol

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.addresses import split_address
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.limits import WRITE_STALL_S
from legion_p2p.net.packet_size import WATCH_S, PacketSize
from legion_p2p.net.volume import SocketVolume

log = logging.getLogger("legion_p2p.net")


class Shaping(Protocol):
    """What limits the traffic of sockets, and makes them behave like those of an emulated link: net/netem.py."""

    @property
    def is_shaping(self) -> bool:
        """Something is limited or delayed."""

    def connect_s(self, host: str) -> float:
        """How long connecting to `host` takes."""

    def shaped(self, stream: trio.SocketStream, owner: "Sockets", dialed: str) -> "OpenSocket":
        """A socket whose bytes go through the link."""


class Ends:
    """One end of a connection, and what came in there."""

    __slots__ = ("leaves_machine", "local_host", "received_bytes")

    def __init__(self, sock: trio.socket.SocketType) -> None:
        try:
            self.local_host: str = sock.getsockname()[0].partition("%")[0]
        except OSError:  # on some systems, where the other side has closed it meanwhile
            self.local_host = ""
        self.leaves_machine = not (self.local_host and ip_address(self.local_host).is_loopback)
        self.received_bytes = 0


class Closable(Protocol):
    """What has a file descriptor."""

    def close_now(self) -> None:
        """Close it without waiting."""


class OpenSocket(Closable, Protocol):
    """A socket as libp2p and `Sockets` see it."""

    ends: Ends

    async def write(self, data: bytes) -> None: ...

    async def read(self, n: int | None = None) -> bytes: ...

    async def close(self) -> None: ...

    def get_remote_address(self) -> tuple[str, int] | None: ...


class Sockets:
    """All open sockets of one host, so that leaving never waits for a peer."""

    def __init__(self, shaper: Shaping | None = None) -> None:
        self._shaper = shaper
        self._open: dict[Closable, socket.socket | trio.socket.SocketType | None] = {}
        self.packet_size = PacketSize()
        self.volume = SocketVolume()
        self._ends: dict[Closable, Ends] = {}
        self._received_before = 0  # on those that are closed now

    def __len__(self) -> int:
        return len(self._open)

    @property
    def are_shaped(self) -> bool:
        """Whether their bytes go through a link now, and so must not go to the kernel in any other way."""
        return self._shaper is not None and self._shaper.is_shaping

    def received_bytes(self) -> int:
        """From other machines, so far, over libp2p's connections."""
        return self._received_before + sum(ends.received_bytes for ends in self._ends.values() if ends.leaves_machine)

    async def connected(self, stream: trio.SocketStream, host: str) -> "OpenSocket":
        """One that this side dialed at `host`."""
        if self._shaper is not None and (connect_s := self._shaper.connect_s(host)):
            await trio.sleep(connect_s)
        return self.wrap(stream, host)

    def wrap(self, stream: trio.SocketStream, dialed: str = "") -> "OpenSocket":
        """`dialed`: the host, where it was this side that dialed."""
        tune(stream.socket)
        keep_from_children(stream.socket)
        wrapped: OpenSocket = Socket(stream, self) if self._shaper is None else self._shaper.shaped(stream, self, dialed)
        self.remember(wrapped, stream.socket)
        self._ends[wrapped] = wrapped.ends
        return wrapped

    def remember(self, wrapped: Closable, sock: "socket.socket | trio.socket.SocketType | None" = None) -> None:
        """Count it, and close it when this peer leaves; `sock`: its socket, to be watched."""
        self._open[wrapped] = sock

    async def watch_packets(self) -> None:
        """Close the connections on which large packets vanish, until cancelled."""
        while True:
            await trio.sleep(WATCH_S)
            for wrapped in self.packet_size.vanishing((w, sock) for w, sock in self._open.items() if sock is not None):
                wrapped.close_now()

    def forget(self, wrapped: Closable) -> None:
        self._open.pop(wrapped, None)
        ends = self._ends.pop(wrapped, None)
        if ends is not None and ends.leaves_machine:
            self._received_before += ends.received_bytes

    def close_all(self) -> None:
        for wrapped in tuple(self._open):
            wrapped.close_now()


class Socket(TrioTCPStream):
    """One connection. A write is done wholly, or the connection is closed: there is no half-written frame."""

    def __init__(self, stream: trio.SocketStream, owner: Sockets) -> None:
        super().__init__(stream)
        self.read_lock = QuickLock()  # type: ignore[assignment]
        self.write_lock = QuickLock()  # type: ignore[assignment]
        self._owner = owner
        self.ends = Ends(stream.socket)
        self.meter = owner.volume.meter(stream.socket)
        self._heard_at = float("-inf")

    def _stalled(self) -> None:
        remote = remote_of(self.stream)
        if remote is not None:
            self._owner.packet_size.stalled(remote[0], self._heard_at)

    async def write(self, data: bytes) -> None:
        async with self.write_lock:
            # shielded: a caller that gives up in mid-frame would desynchronize the cipher for all streams of this connection
            with trio.CancelScope(deadline=trio.current_time() + WRITE_STALL_S, shield=True) as stall:
                try:
                    await self.stream.send_all(data)
                    self.meter.sent(len(data))
                except (trio.BrokenResourceError, trio.ClosedResourceError) as broken:
                    self._end(broken)
                    raise ConnectionClosedError(f"connection closed: {broken}", transport="tcp") from broken
            if stall.cancelled_caught:
                self._stalled()
                self.close_now()
                raise ConnectionClosedError(f"connection closed: nothing taken for {WRITE_STALL_S:.0f} s", transport="tcp")

    async def read(self, n: int | None = None) -> bytes:
        async with self.read_lock:
            if n == 0:
                return b""
            try:
                data = await self.stream.receive_some(n)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as broken:
                self._end(broken)
                raise ConnectionClosedError(f"connection closed: {broken}", transport="tcp") from broken
            if n is not None and not data:
                # b"" would make libp2p's read loops ask a hundred times more
                raise ConnectionClosedError("connection closed by the other side", transport="tcp")
            self.ends.received_bytes += len(data)
            self.meter.received(len(data))
            self._heard_at = trio.current_time()
            return data

    def _end(self, broken: Exception) -> None:
        if isinstance(broken.__cause__, OSError) and broken.__cause__.errno == errno.ETIMEDOUT:  # what was sent is not confirmed
            self._stalled()
        self.close_now()

    async def close(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return remote_of(self.stream)

    def close_now(self) -> None:
        self.stream.socket.close()
        self._owner.forget(self)


def remote_of(stream: trio.SocketStream) -> tuple[str, int] | None:
    """The IP address and port at the other end; libp2p's own knows none of IPv6. None: the connection has ended."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


def host_and_port(address: str) -> tuple[str, int]:
    """Of a multiaddr, with or without its /p2p/ part. Raises: UsageError."""
    _, _, host, _, port = split_address(address)[0].split("/")
    return host, int(port)


def share_port(sock: "socket.socket | trio.socket.SocketType") -> None:
    """Let several sockets of this user have one port. Windows knows no such thing: there, no holes are punched."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def tune(sock: trio.socket.SocketType) -> None:
    """Notice within half a minute that the other side is gone without a word; do not hold small frames back."""
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError as refused:
                log.debug("%s: %s", name, refused)
