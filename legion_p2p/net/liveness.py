"""Whether connections still carry anything, and closing those that do not.

TCP notices a dead path after half a minute at best (`tune` in net/transport.py). Where a peer has reason to doubt a connection,
it sends a ping of yamux over it. Any byte that arrives within CHECK_S is a sign of life, as the answer may queue behind a shard.
"""

import logging
import struct
from collections.abc import Callable, Iterator
from typing import cast

import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT, Yamux

from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.net.circuit_stream import CircuitStream
from legion_p2p.net.sockets import Ends, OpenSocket

CHECK_S = 3.0  # for a sign of life; a path of 300 ms that lost the ping twice answers within it
SETTLE_S = 0.3  # after which nothing is left of what had arrived in the kernel before the path died
CHECK_EVERY_S = 0.1
CLOSE_S = 1.0  # for a connection to be closed; one without a socket of its own goes through another peer

log = logging.getLogger("legion_p2p.net")


class ConnectionLiveness:
    """The connections of one peer, as far as they can be doubted."""

    def __init__(self, swarm: Swarm, nursery: trio.Nursery) -> None:
        self.closed: Observers[PeerId] = Observers()
        """Told of the peer at the other end, whenever a connection was found dead and closed."""
        self._swarm = swarm
        self._nursery = nursery

    def n_connections(self) -> int:
        """Those that leave this machine."""
        return sum(1 for _ in self._remote())

    def peers(self) -> frozenset[PeerId]:
        """The other ends of those that leave this machine."""
        return frozenset(peer_of(conn) for conn in self._remote())

    async def ask(self, most: int) -> None:
        """Send a ping over some of them; nothing is closed."""
        async with trio.open_nursery() as nursery:
            for conn in tuple(self._remote())[:most]:
                nursery.start_soon(self._ping, conn)

    async def check_all(self) -> frozenset[PeerId]:
        """Close those that show no sign of life; the peers at their other ends."""
        dead: set[PeerId] = set()

        async def check(conn: INetConn) -> None:
            if not await self.check(conn):
                dead.add(peer_of(conn))

        async with trio.open_nursery() as nursery:
            for conn in tuple(self._all()):
                nursery.start_soon(check, conn)
        return frozenset(dead)

    def check_older(self, muxed: IMuxedConn) -> None:
        """A peer has connected again: it may have left its earlier connections behind, at an address that it no longer has."""
        for conn in tuple(self._swarm.connections.get(muxed.peer_id, ())):
            if conn.muxed_conn is not muxed and not conn.is_closed:
                self._nursery.start_soon(self.check, conn)

    async def check(self, conn: INetConn) -> bool:
        """Whether it shows a sign of life; else it is closed."""
        muxed = cast(Yamux, conn.muxed_conn)
        pong = muxed._ping_event = trio.Event()
        with trio.move_on_after(CHECK_S):
            await self._ping(conn)
            with trio.move_on_after(SETTLE_S):
                await pong.wait()
            before = _received_bytes(conn)
            while not conn.is_closed:
                if pong.is_set() or _received_bytes(conn) != before:
                    return True
                with trio.move_on_after(CHECK_EVERY_S):
                    await pong.wait()
        await close(conn)
        self.closed.tell(peer_of(conn))
        return False

    async def drop(self, is_dead: Callable[[str], bool]) -> frozenset[PeerId]:
        """Close the connections from such addresses of this machine at once; the peers at their other ends."""
        dropped = [conn for conn in self._remote() if is_dead(_local_host(conn))]
        async with trio.open_nursery() as nursery:
            for conn in dropped:
                nursery.start_soon(close, conn)
        peers = frozenset(map(peer_of, dropped))
        for peer in peers:
            self.closed.tell(peer)
        return peers

    async def _ping(self, conn: INetConn) -> None:
        muxed = cast(Yamux, conn.muxed_conn)
        muxed._ping_id += 1
        muxed._ping_sent_time = trio.current_time()
        try:
            await muxed._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, muxed._ping_id))
        except Exception as broken:
            log.debug("ping to %s: %r", muxed.peer_id, broken)
            await close(conn)

    def _all(self) -> Iterator[INetConn]:
        for conns in tuple(self._swarm.connections.values()):
            yield from (conn for conn in conns if not conn.is_closed)

    def _remote(self) -> Iterator[INetConn]:
        return (conn for conn in self._all() if (socket := socket_of(conn)) is None or socket.ends.leaves_machine)


def peer_of(conn: INetConn) -> PeerId:
    return PeerId(str(conn.muxed_conn.peer_id))


def _below(conn: INetConn) -> object:
    """The socket or the circuit that carries a connection."""
    inner: object = cast(Yamux, conn.muxed_conn).secured_conn
    for name in ("conn", "conn", "stream"):  # a secure session, its cipher, the raw connection, what is below
        inner = getattr(inner, name, None)
    return inner


def _received_bytes(conn: INetConn) -> int:
    """What has come in over a connection. A circuit counts as well: at 256 kbit/s a pong waits 8 s behind a shard of 256 KiB."""
    carrier = _below(conn)
    if isinstance(carrier, CircuitStream):
        return carrier.received_bytes
    socket = socket_of(conn)
    return 0 if socket is None else socket.ends.received_bytes


def socket_of(conn: INetConn) -> OpenSocket | None:
    """The socket below a connection; None for one that goes through another peer."""
    inner = _below(conn)
    return cast(OpenSocket, inner) if isinstance(getattr(inner, "ends", None), Ends) else None


async def close(conn: INetConn) -> None:
    """At once, where there is a socket: closing in order would first write to it. Returns when libp2p counts it as closed; until
    then it is taken for one that is there.
    """
    socket = socket_of(conn)
    if socket is not None:
        socket.close_now()
    with trio.move_on_after(CLOSE_S):
        try:
            if socket is None:
                await conn.close()
            await cast(SwarmConn, conn).event_closed.wait()
        except Exception as failed:
            log.debug("closing a connection to %s: %r", peer_of(conn), failed)


def _local_host(conn: INetConn) -> str:
    """The address of this machine that it uses; empty for one that goes through another peer."""
    socket = socket_of(conn)
    return "" if socket is None else socket.ends.local_host
