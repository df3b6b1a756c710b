"""A socket whose bytes go through an emulated link."""

import logging
import math
import os
import socket
from typing import Protocol

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.access_link import Flow, LinkDirection
from legion_p2p.net.limits import WRITE_STALL_S
from legion_p2p.net.sockets import Socket, Sockets, remote_of

READ_BYTES = 1 << 16
EARLY_S = 0.0005  # the system wakes up to a millisecond late: half of it too early is as wrong as half of it too late
KERNEL_BUFFER_S = 0.25  # of the rate: what the kernel may hold beside the link, which would be delay that was not asked for
MIN_KERNEL_BYTES, MAX_KERNEL_BYTES = 1 << 16, 4 << 20

log = logging.getLogger("legion_p2p.net")


class Feeder:
    """Lets the bytes of one direction pass when their time has come."""

    def __init__(self, direction: LinkDirection) -> None:
        self.direction = direction
        self.channels: dict[Flow, Channel] = {}
        self._wake = Notify()

    async def run(self) -> None:
        while True:
            self.direction.advance(trio.current_time())
            self.tell()
            when = self.direction.next_time()
            with trio.move_on_at(math.inf if when is None else when):
                await self._wake.wait()

    def rate_changed(self) -> None:
        """The direction has another rate: look again when something may pass."""
        self._wake.notify()

    def tell(self) -> None:
        """Wake those whose bytes are in flight now, and the feeder itself where something is left to do."""
        for flow in self.direction.poll():
            channel = self.channels.get(flow)
            if channel is not None:
                channel.notify()
        if self.direction.next_time() is not None:
            self._wake.notify()


class Channel:
    """A flow, with a connection at its end."""

    def __init__(self, feeder: Feeder, path_s: float) -> None:
        self._feeder = feeder
        self._direction = feeder.direction
        self._arrived = Notify()
        self._room = Notify()
        self.flow = self._direction.flow(path_s)
        self.ended = False
        feeder.channels[self.flow] = self

    @property
    def rate_bps(self) -> float:
        return self._direction.rate_bps

    async def put(self, data: bytes) -> None:
        """Waits for room, and then takes all of it."""
        while not self.flow.is_open and not self.ended:
            await self._room.wait()
        if self.ended:
            return
        self._direction.add(self.flow, data, trio.current_time())
        self._feeder.tell()

    async def take(self, most_bytes: int) -> bytes | memoryview:
        """What is due, waiting for it; nothing where it has ended."""
        while True:
            data = self._direction.take(self.flow, most_bytes, trio.current_time() + EARLY_S)
            if len(data):
                self._feeder.tell()
                if self.flow.is_open:
                    self._room.notify()
                return data
            if self.ended and self.flow.is_empty:
                return b""
            due = self.flow.next_due()
            with trio.move_on_at(math.inf if due is None else due - EARLY_S):
                await self._arrived.wait()

    def notify(self) -> None:
        self._arrived.notify()
        if self.flow.is_open:
            self._room.notify()

    def end(self) -> None:
        """Nothing more will come; what is on its way still does."""
        self.ended = True
        self._arrived.notify()
        self._room.notify()

    def drop(self) -> list[memoryview]:
        """End at once; what had not come out."""
        rest = self.flow.rest()
        self.end()
        self._feeder.channels.pop(self.flow, None)
        return rest


class Link(Protocol):
    """What a socket goes through: `net.netem.Shaper`."""

    @property
    def is_shaping(self) -> bool:
        """Something is limited or delayed."""

    def up_for(self, wrapped: "ShapedSocket") -> Channel | None:
        """What the bytes of a connection go up through from now on; None: nothing holds them back."""

    def down_for(self, wrapped: "ShapedSocket") -> Channel | None:
        """The same for the bytes that come down."""


class ShapedSocket(TrioTCPStream):
    """One connection over the link. A write is done when its bytes are taken, as with a kernel's buffer.

    A direction in which nothing limits or delays goes to the kernel at once. When a limit is set, it goes through the link from
    the next write, or read, on.
    """

    def __init__(self, stream: trio.SocketStream, owner: Sockets, link: Link, path_s: float) -> None:
        """`path_s`: round trip beyond the link."""
        super().__init__(stream)
        self.read_lock = QuickLock()  # type: ignore[assignment]
        self.write_lock = QuickLock()  # type: ignore[assignment]
        self._plain = Socket(stream, owner)
        self.ends = self._plain.ends
        self._owner = owner
        self._link = link
        self.path_s = path_s
        self._writing = False
        self._broken = "closed here"
        self._closed = False
        self._up: Channel | None = None
        self._down: Channel | None = None
        self._begin_up()
        self._begin_down()

    def _begin_up(self) -> None:
        self._up = self._link.up_for(self)
        self._limit_kernel(socket.SO_SNDBUF, self._up)

    def _begin_down(self) -> None:
        self._down = self._link.down_for(self)
        self._limit_kernel(socket.SO_RCVBUF, self._down)

    async def write(self, data: bytes) -> None:
        if self._up is None and self._link.is_shaping and not self._closed:
            async with self._plain.write_lock:
                if self._up is None:
                    self._begin_up()
        if self._up is None:
            await self._plain.write(data)
            return
        async with self.write_lock:
            # either nothing of it is taken, or all: whoever gives up in between does not garble the stream
            await self._up.put(data)
            if self._closed:
                raise ConnectionClosedError(f"connection closed: {self._broken}", transport="tcp")

    async def read(self, n: int | None = None) -> bytes:
        if self._down is None and self._link.is_shaping and not self._closed:
            async with self._plain.read_lock:
                if self._down is None:
                    self._begin_down()
        if self._down is None:
            return await self._plain.read(n)
        async with self.read_lock:
            if n == 0:
                return b""
            data = await self._down.take(READ_BYTES if n is None else n)
            await trio.lowlevel.checkpoint()
            if data:
                return bytes(data)
            if n is not None or self._closed:
                raise ConnectionClosedError(f"connection closed: {self._broken}", transport="tcp")
            return b""

    async def write_due(self, up: Channel) -> None:
        """Hand on what has come through the link upwards, until the connection ends."""
        while not self._closed:
            data = await up.take(READ_BYTES)
            self._writing = True
            with trio.move_on_after(WRITE_STALL_S) as stall:
                try:
                    await self.stream.send_all(data)
                    self._plain.meter.sent(len(data))
                except trio.BrokenResourceError as broken:
                    self._break(str(broken))
                except trio.ClosedResourceError:
                    return
            if stall.cancelled_caught:
                self._break(f"nothing taken for {WRITE_STALL_S:.0f} s")
            self._writing = False

    async def read_ahead(self, down: Channel) -> None:
        """Let what arrives into the link downwards, until the connection ends."""
        try:
            while data := await self.stream.receive_some(READ_BYTES):
                self.ends.received_bytes += len(data)
                self._plain.meter.received(len(data))
                await down.put(data)
            self._broken = "ended by the other side"
        except trio.BrokenResourceError as broken:
            self._broken = str(broken)
        except trio.ClosedResourceError:  # closed here, and why is known
            return
        await trio.sleep(down.flow.delay_s)
        down.end()

    async def close(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return remote_of(self.stream)

    def _break(self, reason: str) -> None:
        self._broken = reason
        self.close_now()

    def close_now(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._up is not None:
            # what was written before is delivered, if early: a kernel would deliver it after the close
            rest = self._up.drop()
            try:
                # in the middle of a piece the kernel takes no more anyway
                while rest and not self._writing and os.write(self.stream.socket.fileno(), rest[0]) == len(rest[0]):
                    del rest[0]
            except OSError as refused:
                log.debug("%d pieces undelivered: %s", len(rest), refused)
        if self._down is not None:
            self._down.drop()
        self.stream.socket.close()
        self._owner.forget(self)

    def _limit_kernel(self, option: int, channel: Channel | None) -> None:
        rate_bps = math.inf if channel is None else channel.rate_bps
        if rate_bps < math.inf:
            size = min(max(int(rate_bps / 8 * KERNEL_BUFFER_S), MIN_KERNEL_BYTES), MAX_KERNEL_BYTES)
            try:
                self.stream.socket.setsockopt(socket.SOL_SOCKET, option, size)
            except OSError as refused:
                log.debug("buffer of %d bytes: %s", size, refused)
