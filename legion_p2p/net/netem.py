"""A peer's traffic as over another link: every byte of every connection passes `core.link`, below Noise, dialed or accepted.

It shapes real connections between real processes, and needs no root. Without a delay it is what keeps the peer's upload and
download below their limits. Only TCP's payload counts, not the headers of its packets.

    write -> up -> socket      socket -> down -> read

Places are told apart by address: a peer at place 3 listens on 127.3.0.1, or anywhere in 127.3.0.0/16 (Linux has all of them on
loopback), and the delay of the path is added, both ways, by the side that dials.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from random import Random

import trio

from legion_p2p.core.access_link import NO_LINK, LinkDirection, LinkProfile
from legion_p2p.core.caps import NO_CAPS, Caps
from legion_p2p.net.shaped_socket import Channel, Feeder, ShapedSocket
from legion_p2p.net.sockets import Sockets

CLOCK_EVERY_S = 5.0  # how late quiet hours may begin


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
        self._up = Feeder(LinkDirection(profile, profile.up_bps, rng))
        self._down = Feeder(LinkDirection(profile, profile.down_bps, rng))
        self._lanes = {lane: LinkDirection(link, link.up_bps, rng) for lane, link in profile.lanes}
        self._nursery: trio.Nursery
        self._obey()

    def start(self, nursery: trio.Nursery) -> None:
        """Its tasks run in `nursery` from now on."""
        self._nursery = nursery
        for task in (self._up.run, self._down.run, *([self._watch_the_clock] if self._caps.quiet else [])):
            nursery.start_soon(task)

    @property
    def is_shaping(self) -> bool:
        """Something is limited or delayed, now or at some time of the day."""
        if self.profile != NO_LINK or self._caps.quiet is not None:
            return True
        return not (self._up.direction.is_free and self._down.direction.is_free)

    def limit(self, caps: Caps) -> None:
        """These limits hold from now on, for the connections that are open as well."""
        self._caps = caps
        self._obey()
        self._up.rate_changed()
        self._down.rate_changed()

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

    def shaped(self, stream: trio.SocketStream, owner: Sockets, dialed: str) -> ShapedSocket:
        """A new connection over the link; `dialed`: the host, where it was this side that dialed."""
        return ShapedSocket(stream, owner, self, self.profile.path_s(place_of(dialed)))

    def up_for(self, wrapped: ShapedSocket) -> Channel | None:
        """What the bytes of a connection go up through from now on; None: nothing holds them back."""
        channel = self._channel(self._up, wrapped.path_s)
        if channel is not None:
            self._nursery.start_soon(wrapped.write_due, channel)
        return channel

    def down_for(self, wrapped: ShapedSocket) -> Channel | None:
        """The same for the bytes that come down."""
        channel = self._channel(self._down, wrapped.path_s)
        if channel is not None:
            self._nursery.start_soon(wrapped.read_ahead, channel)
        return channel

    def _channel(self, feeder: Feeder, path_s: float) -> Channel | None:
        return None if feeder.direction.is_free and not path_s and not self._caps.quiet else Channel(feeder, path_s)

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
