"""Accepting connections: libp2p's and those of lanes, on one port.

libp2p's own listener lets a second bootstrap node listen on the same port, which then takes half of the connections, silently;
and it runs its listeners as system tasks.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import trio
from libp2p.abc import IListener
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.utils.multiaddr_utils import multiaddr_from_socket
from multiaddr import Multiaddr

from legion_p2p.net.accepting import Scarcity, accept_forever
from legion_p2p.net.dial_reasons import reason_of
from legion_p2p.net.forks import keep_from_children
from legion_p2p.net.limits import HANDSHAKE_TIMEOUT_S
from legion_p2p.net.sockets import Sockets, host_and_port, remote_of, share_port

log = logging.getLogger("legion_p2p.net")

TlsHandler = Callable[[trio.SocketStream], Awaitable[None]]
"""Takes an inbound connection, which it closes."""

TLS_HANDSHAKE = 0x16  # of the first byte of a TLS connection (RFC 8446, 5.1); libp2p begins with 0x13, the length of a name
BACKLOG = 256  # connections the kernel keeps for us while the loop is busy: all peers of a run that start in the same second


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
        except Exception as error:  # a stranger may send anything: it costs its own connection and no other
            log.debug("inbound TLS connection failed: %r", error)

    async def _serve_libp2p(self, stream: trio.SocketStream) -> None:
        wrapped = self._sockets.wrap(stream)
        try:
            await self._handler(cast(ReadWriteCloser, wrapped))
        except Exception as error:  # the same
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


async def first_byte(stream: trio.SocketStream) -> int:
    """What the other side begins with; it stays to be read.

    Raises: EOFError, if it has closed the connection; trio.TooSlowError; OSError.
    """
    with trio.fail_after(HANDSHAKE_TIMEOUT_S):
        begun = await stream.socket.recv(1, socket.MSG_PEEK)
    if not begun:
        raise EOFError("closed before anything was said")
    return begun[0]


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
            share_port(sock)
        sock.bind((host, port))
    except BaseException:  # whatever it is, an address that is no such thing or Ctrl+C: nobody else would close it
        sock.close()
        raise
    return sock
