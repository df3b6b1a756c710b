"""TCP below libp2p: dialing, also from the port that this peer listens on."""

import errno
import socket
from typing import cast

import trio
from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.errors import UsageError
from legion_p2p.net.accepting import Scarcity
from legion_p2p.net.dial_reasons import reason_of
from legion_p2p.net.ends import End
from legion_p2p.net.listener import Listener
from legion_p2p.net.names import Names, open_stream, resolve
from legion_p2p.net.packet_size import PacketSize
from legion_p2p.net.sockets import Sockets, host_and_port, share_port

MAX_DIALED = 1024  # ends that are remembered; the one dialed longest ago is forgotten first
PORT_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EACCES)  # by a connection to the same place, or in use


class Transport(TCP):
    """Dials and listens. Its tasks run in the nursery that it is given."""

    def __init__(self, nursery: trio.Nursery, sockets: Sockets, scarcity: Scarcity, names: Names) -> None:
        super().__init__()
        self.dialed: BoundedMap[End, bool] = BoundedMap(MAX_DIALED)
        """Ends that were dialed from the listening port. Since then a router or firewall lets in what comes from there, and that
        proves nothing about this peer's reach."""
        self._names = names
        self._nursery = nursery
        self._sockets = sockets
        self._scarcity = scarcity

    def has_dialed(self, host: str) -> bool:
        """Whether any port of `host` was dialed from the listening port: some NATs let in all that comes from it since."""
        return any(dialed == host for dialed, _ in self.dialed)

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

    async def dial_with_source(self, maddr: Multiaddr, source: End) -> IRawConnection:
        """Like `dial`, from the port that this peer listens on: a router then shows everybody the same port for both, which is
        what holes are punched to. Where that port cannot be used once more, from any other.
        """
        try:
            host, port = host_and_port(str(maddr))
            where = await resolve(self._names, str(maddr).split("/")[1], host)
            self.dialed[where[0], port] = True
            stream = await connect_to(where[0], port, self._sockets.packet_size, source)
        except (OSError, UsageError) as failed:
            if isinstance(failed, OSError) and failed.errno in PORT_TAKEN:
                return await self.dial(maddr)
            raise OpenConnectionError(reason_of(failed)) from failed
        return RawConnection(cast(ReadWriteCloser, await self._sockets.connected(stream, host)), True)

    def create_listener(self, handler_function: THandler) -> "Listener":  # type: ignore[override]
        return Listener(handler_function, self._nursery, self._sockets, self._scarcity)


async def connect_to(host: str, port: int, packet_size: PacketSize, source: End | None = None) -> trio.SocketStream:
    """Connect to an IP address, from a port that this process listens on if one is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        packet_size.apply(sock)
        if source is not None:
            share_port(sock)
            await sock.bind(source)
        await sock.connect((host, port))
    except BaseException:  # a caller that gives up as well: the socket would stay open
        sock.close()
        raise
    return trio.SocketStream(sock)
