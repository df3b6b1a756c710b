"""The ends of a connection: IP addresses and ports on both sides, and the relay in between."""

from typing import Any, cast

from libp2p.abc import IMuxedConn, INetConn
from libp2p.connection_types import ConnectionType
from libp2p.stream_muxer.yamux.yamux import Yamux

from legion_p2p.core.identity import PeerId

End = tuple[str, int]


def remote_end(connection: IMuxedConn) -> End | None:
    """The IP address and port at the other end of a connection; None: it leads through a relay, or has ended."""
    return cast(Yamux, connection).get_remote_address()


def local_end(connection: IMuxedConn) -> End | None:
    """The same at this end."""
    secured: Any = cast(Yamux, connection).secured_conn
    try:
        host, port = secured.conn.conn.stream.stream.socket.getsockname()[:2]
    except (AttributeError, OSError):  # it leads through a relay, or has ended
        return None
    return str(host), int(port)


def relay_of(connection: INetConn) -> PeerId | None:
    """The relay that a connection leads through; None: it is direct."""
    if connection.get_connection_type() is not ConnectionType.RELAYED:
        return None
    for address in connection.get_transport_addresses():
        before, mark, _ = str(address).partition("/p2p-circuit")
        if mark:
            return PeerId(before.rpartition("/p2p/")[2])
    return None


def multiaddr_of(end: End) -> str:
    """An end as a multiaddr."""
    host, port = end
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
