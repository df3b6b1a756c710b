"""A peer's traffic as over another link: every byte of every connection passes `core.link`, below Noise, dialed or accepted.

It shapes real connections between real processes, and needs no root. Without a delay it is what keeps the peer's upload and
download below their limits. Only TCP's payload counts, not the headers of its packets.

    write -> up -> socket      socket -> down -> read

Places are told apart by address: a peer at place 3 listens on 127.3.0.1, or anywhere in 127.3.0.0/16 (Linux has all of them on
loopback), and the delay of the path is added, both ways, by the side that dials.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from random import Random

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.access_link import NO_LINK, Flow, LinkDirection, LinkProfile
from legion_p2p.core.caps import NO_CAPS, Caps
from legion_p2p.net.limits import WRITE_STALL_S
from legion_p2p.net.transport import Socket, Sockets, remote_of

READ_BYTES = 1 << 16
CLOCK_EVERY_S = 5.0  # how late quiet hours may begin
EARLY_S = 0.0005  # the system wakes up to a millisecond late: half of it too early is as wrong as half of it too late
KERNEL_BUFFER_S = 0.25  # of the rate: what the kernel may hold beside the link, which would be delay that was not asked for
MIN_KERNEL_BYTES, MAX_KERNEL_BYTES = 1 << 16, 4 << 20

log = logging.getLogger("legion_p2p.net")


def place_of(host: str) -> int:
    """The place of a peer that listens on `host`; 0 where it has none."""
    try:
        octets = IPv4Address(host).packed
    except AddressValueError:
        return 0
    return octets[1] if octets[0] == 127 else 0


@dataclass(frozen=True)
class Throttling:
    """How this host's traffic is held back: by a link to emulate, by limits, or by both. Nothing is by default."""

    link: LinkProfile = NO_LINK
    caps: Caps = NO_CAPS


UNTHROTTLED = Throttling()


class Shaper:
    """One peer's link, both ways, and the limits that its owner sets."""

    def __init__(
        self, profile: LinkProfile, caps: Caps = NO_CAPS, rng: Random | None = None, minute: Callable[[], int] | None = None
    ) -> None:
        """`minute`: tells the minute of the day, local time."""
        rng = rng or Random()
        self.profile = profile
        self._caps = caps
        self._minute = minute or _minute_now
        self._up = _Feeder(LinkDirection(profile, profile.up_bps, rng))
        self._down = _Feeder(LinkDirection(profile, profile.down_bps, rng))
        self._lanes = {lane: LinkDirection(link, link.up_bps, rng) for lane, link in profile.lanes}
        self._nursery: trio.Nursery
        self._obey()

    def start(self, nursery: trio.Nursery) -> None:
        """Its tasks run in `nursery` from now on."""
        self._nursery = nursery
        for task in (self._up.run, self._down.run, *([self._watch_the_clock] if self._caps.quiet else [])):
            nursery.start_soon(task)

    def limits_bps(self) -> tuple[float, float]:
        """What holds now, limits and link together: (up, down); infinite where nothing limits."""
        return self._up.direction.rate_bps, self._down.direction.rate_bps

    def lane(self, lane: str) -> Callable[[int], float] | None:
        """For a new stream of a lane: tells when a message of this many bytes may be written; None: at once."""
        direction = self._lanes.get(lane)
        if direction is None:
            return None
        flow = direction.flow()
        return lambda n_bytes: direction.due(flow, n_bytes, trio.current_time())

    def connect_s(self, host: str) -> float:
        """What it takes to connect to `host`: one round trip."""
        return self.profile.rtt_s + self.profile.path_s(place_of(host))

    def shaped(self, stream: trio.SocketStream, owner: Sockets, dialed: str) -> "ShapedSocket":
        """A new connection over the link; `dialed`: the host, where it was this side that dialed."""
        path_s = self.profile.path_s(place_of(dialed))
        up, down = (
            None if feeder.direction.is_free and not path_s and not self._caps.quiet else _Channel(feeder, path_s)
            for feeder in (self._up, self._down)
        )
        wrapped = ShapedSocket(stream, owner, up, down)
        if up is not None:
            self._nursery.start_soon(wrapped.write_due, up)
        if down is not None:
            self._nursery.start_soon(wrapped.read_ahead, down)
        return wrapped

    def _obey(self) -> None:
        upload_bps, download_bps = self._caps.at(self._minute())
        self._up.direction.rate_bps = min(upload_bps, self.profile.up_bps)
        self._down.direction.rate_bps = min(download_bps, self.profile.down_bps)

    async def _watch_the_clock(self) -> None:
        while True:
            await trio.sleep(CLOCK_EVERY_S)
            self._obey()


def _minute_now() -> int:
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


class _Feeder:
    """Lets the bytes of one direction pass when their time has come."""

    def __init__(self, direction: LinkDirection) -> None:
        self.direction = direction
        self.channels: dict[Flow, _Channel] = {}
        self._wake = Notify()

    async def run(self) -> None:
        while True:
            self.direction.advance(trio.current_time())
            self.tell()
            when = self.direction.next_time()
            with trio.move_on_at(math.inf if when is None else when):
                await self._wake.wait()

    def tell(self) -> None:
        """Wake those whose bytes are in flight now, and the feeder itself where something is left to do."""
        for flow in self.direction.poll():
            channel = self.channels.get(flow)
            if channel is not None:
                channel.notify()
        if self.direction.next_time() is not None:
            self._wake.notify()


class _Channel:
    """A flow, with a connection at its end."""

    def __init__(self, feeder: _Feeder, path_s: float) -> None:
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


class ShapedSocket(TrioTCPStream):
    """One connection over the link. A write is done when its bytes are taken, as with a kernel's buffer."""

    def __init__(self, stream: trio.SocketStream, owner: Sockets, up: _Channel | None, down: _Channel | None) -> None:
        """A direction that is None is not shaped."""
        super().__init__(stream)
        self.read_lock = QuickLock()  # type: ignore[assignment]
        self.write_lock = QuickLock()  # type: ignore[assignment]
        self._plain = Socket(stream, owner)
        self.ends = self._plain.ends
        self._owner = owner
        self._up = up
        self._down = down
        self._writing = False
        self._broken = "closed here"
        self._closed = False
        self._limit_kernel(socket.SO_SNDBUF, up)
        self._limit_kernel(socket.SO_RCVBUF, down)

    async def write(self, data: bytes) -> None:
        if self._up is None:
            await self._plain.write(data)
            return
        async with self.write_lock:
            # either nothing of it is taken, or all: whoever gives up in between does not garble the stream
            await self._up.put(data)
            if self._closed:
                raise ConnectionClosedError(f"connection closed: {self._broken}", transport="tcp")

    async def read(self, n: int | None = None) -> bytes:
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

    async def write_due(self, up: _Channel) -> None:
        """Hand on what has come through the link upwards, until the connection ends."""
        while not self._closed:
            data = await up.take(READ_BYTES)
            self._writing = True
            with trio.move_on_after(WRITE_STALL_S) as stall:
                try:
                    await self.stream.send_all(data)
                except trio.BrokenResourceError as broken:
                    self._break(str(broken))
                except trio.ClosedResourceError:
                    return
            if stall.cancelled_caught:
                self._break(f"nothing taken for {WRITE_STALL_S:.0f} s")
            self._writing = False

    async def read_ahead(self, down: _Channel) -> None:
        """Let what arrives into the link downwards, until the connection ends."""
        try:
            while data := await self.stream.receive_some(READ_BYTES):
                self.ends.received_bytes += len(data)
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

    def _limit_kernel(self, option: int, channel: _Channel | None) -> None:
        rate_bps = math.inf if channel is None else channel.rate_bps
        if rate_bps < math.inf:
            size = min(max(int(rate_bps / 8 * KERNEL_BUFFER_S), MIN_KERNEL_BYTES), MAX_KERNEL_BYTES)
            try:
                self.stream.socket.setsockopt(socket.SOL_SOCKET, option, size)
            except OSError as refused:
                log.debug("buffer of %d bytes: %s", size, refused)
