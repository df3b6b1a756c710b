"""How long bulk takes between the peers of a world: the rates of uplinks, of access links, and between two peers."""

import math
import random
from collections.abc import Callable, MutableMapping

import trio

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.errors import UsageError
from legion_p2p.sim.throttle import Access, Uplink
from legion_p2p.sim.timers import Timers


class Rates:
    """What each peer's link carries, and until when it is busy."""

    def __init__(
        self,
        seed: int,
        up_bytes_s: float,
        links: MutableMapping[PeerId, LinkProfile] | None,
        start: Callable[..., None],
        timers: Timers,
    ) -> None:
        """See `World`. `start` runs a task as long as the world lasts."""
        self._seed = seed
        self._up_bytes_s = up_bytes_s
        self._links = links
        self._start = start
        self._timers = timers
        self._busy_until: dict[tuple[PeerId, PeerId], float] = {}
        self._uplinks: dict[PeerId, Uplink] = {}
        self._access: dict[PeerId, Access] = {}

    @property
    def are_endless(self) -> bool:
        """No link limits what peers send."""
        return self._links is None and self._up_bytes_s == math.inf

    async def send(self, sender: PeerId, target: PeerId, n_bytes: int, priority: Priority) -> None:
        """Wait until the sender's uplink has taken the bytes, in their turn."""
        uplink = self._uplink_of(sender)
        if uplink is not None:
            await uplink.send(target, n_bytes, priority)

    async def pass_links(self, source: PeerId, target: PeerId, n_bytes: int) -> None:
        """Wait until the bytes have passed the access links of both."""
        assert self._links is not None
        await self._timers.sleep_until(self._access_of(source).up(target, self._links[target].place, n_bytes))
        await self._timers.sleep_until(self._access_of(target).down(source, n_bytes))

    def turn_s(self, source: PeerId, target: PeerId, takes_s: float) -> float:
        """Seconds until the bytes have their turn between the two peers, and have passed in `takes_s` after that."""
        now = trio.current_time()
        begin = max(now, self._busy_until.get((source, target), now))
        self._busy_until[source, target] = begin + takes_s
        return begin + takes_s - now

    def limits_bps(self, peer: PeerId) -> tuple[float | None, float | None]:
        """What its access link carries, up and down; None where nothing limits it."""
        profile = None if self._links is None else self._links[peer]
        if profile is None:
            return None, None
        up, down = (bps if math.isfinite(bps) else None for bps in (profile.up_bps, profile.down_bps))
        return up, down

    def relink(self, peer: PeerId, profile: LinkProfile) -> None:
        """From now on its access link is this one. What has been sent already keeps its time."""
        if self._links is None:
            raise UsageError("peers of this world have no links: World(links=...)")
        self._links[peer] = profile
        if peer in self._uplinks:
            self._uplinks[peer].bytes_s = profile.up_bps / 8
        self._access.pop(peer, None)

    def _uplink_of(self, peer: PeerId) -> Uplink | None:
        bytes_s = self._up_bytes_s if self._links is None else self._links[peer].up_bps / 8
        if bytes_s == math.inf:
            return None
        return self._uplinks.setdefault(peer, Uplink(bytes_s, self._start))

    def _access_of(self, peer: PeerId) -> Access:
        assert self._links is not None
        if peer not in self._access:
            self._access[peer] = Access(self._links[peer], random.Random(f"{self._seed}/{peer}"))
        return self._access[peer]
