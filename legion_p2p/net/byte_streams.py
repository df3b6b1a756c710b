"""What frames are written to and read from: a stream of libp2p, or a connection of its own with TLS.

MuxedStream    a stream of a libp2p connection: it works wherever there is a connection, and costs most
TlsStream      TLS on a socket, which OpenSSL reads and writes itself: nothing is copied in Python
LinkStream     TLS over a socket whose traffic is held back (net/netem.py), so its bytes have to pass through Python
"""

import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

import trio
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.net.limits import WRITE_STALL_S
from legion_p2p.net.sockets import OpenSocket, Sockets

RECORDS_BYTES = 1 << 17  # that are encrypted at once, as 8 TLS records: some 80 us
MAX_RECORD_BYTES = (1 << 14) + 256 + 5  # of TLS 1.3 (RFC 8446, 5.2), with its header
GATHER_BYTES, GATHER_S = 1 << 16, 0.1  # a reader that knows that more is to come waits for the one or the other
GATHER_FROM_BYTES = 3 * MAX_RECORD_BYTES
TURN_BYTES = 1 << 18  # that are moved before other tasks have their turn: some 150 us


class ByteStream(Protocol):
    """A stream between two peers, authenticated and encrypted."""

    async def read_into(self, room: memoryview) -> int:
        """1 to `len(room)` bytes; 0 where the other side has ended it. Raises: whatever is below it.

        Of a room larger than GATHER_FROM_BYTES the caller knows that all of it is to come: nothing has to be read at once.
        """

    async def write(self, data: bytes | memoryview) -> None:
        """All of it. After a failure, or once cancelled, the stream is of no use any more. Raises: whatever is below it."""

    async def reset(self) -> None:
        """End it, whatever state it is in."""


class MuxedStream:
    """A stream of a libp2p connection."""

    def __init__(self, stream: NetStream, window_bytes: int) -> None:
        """`window_bytes`: what the other side may send ahead; it grows that far, as needed."""
        self._stream = stream
        stream.muxed_stream.target_recv_window = window_bytes  # type: ignore[attr-defined]  # of net/patches.py

    async def read_into(self, room: memoryview) -> int:
        try:
            data = await self._stream.read(len(room))
        except Exception as error:
            if type(error).__name__ in ("StreamEOF", "MuxedStreamEOF"):
                return 0
            raise
        room[: len(data)] = data
        return len(data)

    async def write(self, data: bytes | memoryview) -> None:
        # yamux cuts it into its own frames: a view spares the copies
        await self._stream.write(data)  # type: ignore[arg-type]

    async def reset(self) -> None:
        await self._stream.reset()


class TlsByteStream(ByteStream, Protocol):
    """A connection of its own."""

    async def handshake(self) -> None:
        """Authenticate both sides. Raises: OSError (of which ssl.SSLError is one), trio.BrokenResourceError."""

    def certificate(self) -> bytes | None:
        """What the other side has presented, and proved to have the key of."""

    def close_now(self) -> None:
        """Close it without waiting."""


class TlsStream:
    """TLS on a socket."""

    def __init__(self, sock: ssl.SSLSocket, owner: Sockets) -> None:
        """`sock` must not block."""
        self._sock = sock
        self._fd = sock.fileno()
        self._n_in_a_row = 0
        self._heard_at = float("-inf")
        self._low_water = 1
        self._has_no_low_water = False
        self._owner = owner
        self._meter = owner.volume.meter(sock)
        owner.remember(self, sock)

    async def handshake(self) -> None:
        while True:
            try:
                self._sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._fd)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._fd)

    def certificate(self) -> bytes | None:
        return self._sock.getpeercert(binary_form=True)

    async def read_into(self, room: memoryview) -> int:
        n_read = 0
        try:
            while n_read < len(room):
                try:
                    n_new = self._sock.recv_into(room[n_read:])
                except ssl.SSLWantReadError:
                    if n_read:
                        break
                    await self._wait_readable(len(room))
                    continue
                if not n_new:
                    break
                n_read += n_new
        finally:
            if n_read:
                self._meter.received(n_read)
        self._heard_at = trio.current_time()
        await self._let_others(n_read)
        return n_read

    async def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                n_sent = self._sock.send(view[:RECORDS_BYTES])
            except ssl.SSLWantWriteError:
                try:
                    with trio.fail_after(WRITE_STALL_S):
                        await self._wait(trio.lowlevel.wait_writable)
                except trio.TooSlowError:
                    self._owner.packet_size.stalled(self._sock.getpeername()[0], self._heard_at)
                    raise
            else:
                view = view[n_sent:]
                self._meter.sent(n_sent)
                await self._let_others(n_sent)

    async def _wait_readable(self, n_certain: int) -> None:
        """Until something can be read, or, where more is certain to come, until it is worth waking up for it.

        Packets come one by one, at 20 Mbit/s 1700 times a second. Waking up for each of them took three times as much CPU
        (docs/records/lane.md), and most of them do not even complete a TLS record.
        """
        gathers = n_certain > GATHER_FROM_BYTES
        self._set_low_water(min(n_certain - 2 * MAX_RECORD_BYTES, GATHER_BYTES) if gathers else 1)
        # a part of a record may be inside OpenSSL already, so less than is certain comes out of the socket
        with trio.move_on_after(GATHER_S if gathers else math.inf):
            await self._wait(trio.lowlevel.wait_readable)

    def _set_low_water(self, n_bytes: int) -> None:
        if n_bytes != self._low_water and not self._has_no_low_water:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n_bytes)
                self._low_water = n_bytes
            except OSError:  # Windows has none
                self._has_no_low_water = True

    async def _wait(self, for_socket: Callable[[int], Awaitable[None]]) -> None:
        self._n_in_a_row = 0
        await for_socket(self._fd)

    async def _let_others(self, n_bytes: int) -> None:
        """Other tasks have their turn now and then, where the socket never makes this one wait."""
        self._n_in_a_row += n_bytes
        if self._n_in_a_row >= TURN_BYTES:
            self._n_in_a_row = 0
            await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._fd)
            self._sock.close()
        self._owner.forget(self)


class LinkStream:
    """TLS over a socket whose traffic is held back."""

    def __init__(self, link: OpenSocket, context: ssl.SSLContext, ticket: str | None) -> None:
        """`ticket`: of the side that dials."""
        self._link = link
        self._tls = trio.SSLStream(
            _LinkTransport(link), context, server_hostname=ticket, server_side=ticket is None, https_compatible=True
        )

    async def handshake(self) -> None:
        await self._tls.do_handshake()

    def certificate(self) -> bytes | None:
        return cast(bytes | None, self._tls.getpeercert(binary_form=True))

    async def read_into(self, room: memoryview) -> int:
        data = await self._tls.receive_some(len(room))
        room[: len(data)] = data
        return len(data)

    async def write(self, data: bytes | memoryview) -> None:
        await self._tls.send_all(data)

    async def reset(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        self._link.close_now()


class _LinkTransport(trio.abc.Stream):
    """What trio's TLS is put on."""

    def __init__(self, link: OpenSocket) -> None:
        self._link = link

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._link.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._link.read(None)

    async def aclose(self) -> None:
        await self._link.close()
