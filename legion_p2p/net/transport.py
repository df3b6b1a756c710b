"""TCP below libp2p: sockets that this side can count, tune, and close at once.

libp2p's own lets a second bootstrap node listen on the same port, which then takes half of the connections, silently. It runs its
listeners as system tasks, and leaves a half-written frame behind when a write is cancelled, which garbles all that follows.
"""

import errno
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import Protocol, cast

import trio
from libp2p.abc import IListener, IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.multiaddr_utils import multiaddr_from_socket
from multiaddr import Multiaddr

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.addresses import split_address
from legion_p2p.errors import UsageError
from legion_p2p.net.accepting import Scarcity, accept_forever
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.limits import HANDSHAKE_TIMEOUT_S, WRITE_STALL_S
from legion_p2p.net.names import Names, open_stream, resolve
from legion_p2p.net.packet_size import WATCH_S, PacketSize

PORT_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EACCES)  # by a connection to the same place, or in use
TlsHandler = Callable[[trio.SocketStream], Awaitable[None]]
"""Takes an inbound connection, which it closes."""

TLS_HANDSHAKE = 0x16  # of the first byte of a TLS connection (RFC 8446, 5.1); libp2p begins with 0x13, the length of a name
BACKLOG = 256  # connections the kernel keeps for us while the loop is busy: all peers of a run that start in the same second

log = logging.getLogger("legion_p2p.net")


class Shaping(Protocol):
    """What makes sockets behave like those of an emulated link: net/netem.py."""

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
        self._ends: dict[Closable, Ends] = {}
        self._received_before = 0  # on those that are closed now

    def __len__(self) -> int:
        return len(self._open)

    @property
    def are_shaped(self) -> bool:
        """Whether their bytes go through a link, and so must not go to the kernel in any other way."""
        return self._shaper is not None

    def received_bytes(self) -> int:
        """From other machines, so far, over libp2p's connections."""
        return self._received_before + sum(ends.received_bytes for ends in self._ends.values() if ends.leaves_machine)

    async def connected(self, stream: trio.SocketStream, host: str) -> "OpenSocket":
        """One that this side dialed at `host`."""
        if self._shaper is not None:
            await trio.sleep(self._shaper.connect_s(host))
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


class Transport(TCP):
    """Dials and listens. Its tasks run in the nursery that it is given."""

    def __init__(self, nursery: trio.Nursery, sockets: Sockets, scarcity: Scarcity, names: Names) -> None:
        super().__init__()
        self._names = names
        self._nursery = nursery
        self._sockets = sockets
        self._scarcity = scarcity

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        # names go to the operating system, not to libp2p's DNS client, which knows neither /etc/hosts nor the names of a LAN
        try:
            host, port = host_and_port(str(maddr))
            connect = self._connect_small if self._sockets.packet_size.is_small else trio.open_tcp_stream
            stream = await open_stream(self._names, str(maddr).split("/")[1], host, port, connect)
        except (OSError, UsageError) as failed:
            raise OpenConnectionError(reason_of(failed)) from failed
        return RawConnection(cast(ReadWriteCloser, await self._sockets.connected(stream, host)), True)

    async def _connect_small(self, host: str, port: int) -> trio.SocketStream:
        return await connect_to(host, port, self._sockets.packet_size)

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> IRawConnection:
        """Like `dial`, from the port that this peer listens on: a router then shows everybody the same port for both, which is
        what holes are punched to. Where that port cannot be used once more, from any other.
        """
        try:
            host, port = host_and_port(str(maddr))
            where = await resolve(self._names, str(maddr).split("/")[1], host)
            stream = await connect_to(where[0], port, self._sockets.packet_size, source)
        except (OSError, UsageError) as failed:
            if isinstance(failed, OSError) and failed.errno in PORT_TAKEN:
                return await self.dial(maddr)
            raise OpenConnectionError(reason_of(failed)) from failed
        return RawConnection(cast(ReadWriteCloser, await self._sockets.connected(stream, host)), True)

    def create_listener(self, handler_function: THandler) -> "Listener":  # type: ignore[override]
        return Listener(handler_function, self._nursery, self._sockets, self._scarcity)


class Listener(IListener):
    """Accepts on one address; never on a port that somebody listens on already."""

    def __init__(
        self, handler: THandler, nursery: trio.Nursery, sockets: Sockets, scarcity: Scarcity, tls: TlsHandler | None = None
    ) -> None:
        """`tls` takes the connections that begin with a TLS handshake; None: they are closed."""
        self._handler = handler
        self._nursery = nursery
        self._sockets = sockets
        self._scarcity = scarcity
        self._tls = tls
        self._n_undecided = 0
        self._listeners: list[trio.SocketListener] = []
        self._addresses: tuple[Multiaddr, ...] = ()
        self._scope = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        try:
            self._listeners = [_bind(*host_and_port(str(maddr)))]
            self._sockets.packet_size.listens(self._listeners[0].socket)
        except OSError as failed:
            raise OpenConnectionError(reason_of(failed)) from failed
        self._addresses = tuple(multiaddr_from_socket(listener.socket) for listener in self._listeners)
        self._nursery.start_soon(self._accept)

    async def _accept(self) -> None:
        with self._scope:
            (listener,) = self._listeners
            await accept_forever(listener, self._serve, self._scarcity)

    async def _serve(self, stream: trio.SocketStream) -> None:
        n_open, remote = len(self._sockets) + self._n_undecided, remote_of(stream)
        if remote is None or not (self._scarcity.admits(n_open) and self._scarcity.places.admits(remote[0], n_open)):
            await trio.aclose_forcefully(stream)
            return
        with self._scarcity.places.taken(remote[0]):
            self._n_undecided += 1
            try:
                begins_with_tls = await first_byte(stream) == TLS_HANDSHAKE
            except (trio.TooSlowError, EOFError, OSError) as gone:
                log.debug("inbound connection said nothing: %r", gone)
                await trio.aclose_forcefully(stream)
                return
            finally:
                self._n_undecided -= 1
            await (self._serve_tls(stream) if begins_with_tls else self._serve_libp2p(stream))

    async def _serve_tls(self, stream: trio.SocketStream) -> None:
        if self._tls is None:
            await trio.aclose_forcefully(stream)
            return
        try:
            await self._tls(stream)
        except Exception as error:
            log.debug("inbound TLS connection failed: %r", error)

    async def _serve_libp2p(self, stream: trio.SocketStream) -> None:
        wrapped = self._sockets.wrap(stream)
        try:
            await self._handler(cast(ReadWriteCloser, wrapped))
        except Exception as error:
            log.debug("inbound connection failed: %r", error)
        finally:
            wrapped.close_now()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return self._addresses

    async def close(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        self._scope.cancel()
        for listener in self._listeners:
            listener.socket.close()


def remote_of(stream: trio.SocketStream) -> tuple[str, int] | None:
    """The IP address and port at the other end; libp2p's own knows none of IPv6. None: the connection has ended."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return None
    return str(host), int(port)


async def first_byte(stream: trio.SocketStream) -> int:
    """What the other side begins with; it stays to be read.

    Raises: EOFError, if it has closed the connection; trio.TooSlowError; OSError.
    """
    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
        begun = await stream.socket.recv(1, socket.MSG_PEEK)
    if not begun:
        raise EOFError("closed before anything was said")
    return begun[0]


def host_and_port(address: str) -> tuple[str, int]:
    """Of a multiaddr, with or without its /p2p/ part. Raises: UsageError."""
    _, _, host, _, port = split_address(address)[0].split("/")
    return host, int(port)


async def connect_to(host: str, port: int, packet_size: PacketSize, source: tuple[str, int] | None = None) -> trio.SocketStream:
    """Connect to an IP address, from a port that this process listens on if one is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        packet_size.apply(sock)
        if source is not None:
            _share_port(sock)
            await sock.bind(source)
        await sock.connect((host, port))
    except BaseException:  # a caller that gives up as well: the socket would stay open
        sock.close()
        raise
    return trio.SocketStream(sock)


def _bind(host: str, port: int) -> trio.SocketListener:
    if port and hasattr(socket, "SO_REUSEPORT"):
        # with SO_REUSEPORT two listeners would share the connections, silently: so first without
        with _bound(host, port, shared=False) as sock:
            sock.listen(1)
    sock = _bound(host, port, shared=True)
    try:
        sock.listen(BACKLOG)
    except BaseException:  # the socket would stay open, and its port taken
        sock.close()
        raise
    listening = trio.socket.from_stdlib_socket(sock)
    keep_from_children(listening)
    return trio.SocketListener(listening)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket with that address; `shared`: connections of this process may be made from it as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # a restarted node gets its port back while old connections linger; two that live still exclude each other
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            _share_port(sock)
        sock.bind((host, port))
    except BaseException:  # whatever it is, an address that is no such thing or Ctrl+C: nobody else would close it
        sock.close()
        raise
    return sock


def _share_port(sock: "socket.socket | trio.socket.SocketType") -> None:
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


def reason_of(error: BaseException) -> str:
    """The innermost cause of a failed dial, in words for people."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return f"the name cannot be resolved ({cause.strerror})"
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror.lower()
    for cause in chain:
        text = str(cause)
        for mark in ("Peer ID mismatch", "peer id does not correspond"):
            if mark in text:
                return f"the peer there has another id: {re.split('got |pubkey=', text)[-1]}"
    for cause in chain:
        if isinstance(cause, trio.TooSlowError):
            return "no answer in time"
    text = str(chain[-1]) or str(chain[0])
    return text.splitlines()[0][:200] if text else type(chain[-1]).__name__


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend(cause.exceptions)
        waiting.extend(getattr(cause, "errors", ()) if not isinstance(cause, OSError) else ())
        waiting.extend(c for c in (cause.__cause__, cause.__context__) if c is not None)
