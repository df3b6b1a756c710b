"""Where this peer is, and which region it should be in: round trips measured by the way, and a look at what others announce.

joining -> PROBED members are pinged, and the coordinate is fitted to their round trips before the first look
each announcement period -> what round trips were measured anyway move the coordinate; a quiet member or two are pinged; a look
"""

import random

import trio

from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.coordinates import Coordinate, Locator
from legion_p2p.core.identity import PeerId
from legion_p2p.core.regions import Placed, RegionChoice, regions_of
from legion_p2p.services.members import MemberService
from legion_p2p.services.ports import Messenger

PROBED = 16  # members that a newcomer measures: more would cost each member of a large run a ping for every newcomer
PINGS = 5  # of a newcomer to each, of which the quickest counts: the first includes the making of the connection
FITTINGS = 30  # passes over what a newcomer measured, after which its coordinate stands still: measured
MAX_OBSERVED = 32  # round trips that are taken in each period
SETTLED = 0.3  # a coordinate of less error moves once by each round trip, one of more UNSETTLED_PASSES times
UNSETTLED_PASSES = 4
QUIET_PINGED = 2  # members without a measured round trip that are pinged each period


class RegionService:
    """The network coordinate of this peer, and its choice of a region."""

    def __init__(self, members: MemberService, messenger: Messenger, region: str) -> None:
        """`region`: a label to stay in, or AUTO_REGION."""
        self._members = members
        self._messenger = messenger
        self._rng = random.Random(members.me)
        self._locator = Locator(self._rng)
        self._fixed = None if region == AUTO_REGION else region
        self._choice = RegionChoice(members.me)

    @property
    def coordinate(self) -> Coordinate:
        return self._locator.coordinate

    async def first(self) -> str:
        """The region to begin in, of those of the members known now."""
        if self._fixed is not None:
            return self._fixed
        known = [m.announcement for m in self._members.table.counted() if m.announcement.coordinate is not None]
        probed = self._rng.sample(known, min(PROBED, len(known)))
        quickest: dict[PeerId, float] = {}

        async def measure(peer: PeerId) -> None:
            times = [await self._members.ping(peer) for _ in range(PINGS)]
            if answered := [rtt_s for rtt_s in times if rtt_s is not None]:
                quickest[peer] = min(answered)

        async with trio.open_nursery() as nursery:
            for announcement in probed:
                nursery.start_soon(measure, peer_of(announcement))
        for _ in range(FITTINGS):
            for announcement in probed:
                if (rtt_s := quickest.get(peer_of(announcement))) is not None:
                    self._observe(announcement, rtt_s)
        return self.look()

    async def measure(self) -> None:
        """Once per announcement period: take in the round trips known, and ping a few members that nothing is known of."""
        others = [m.announcement for m in self._members.table.counted() if m.announcement.coordinate is not None]
        quiet = [a for a in others if self._messenger.rtt_s(peer_of(a)) is None]
        async with trio.open_nursery() as nursery:
            for announcement in self._rng.sample(quiet, min(QUIET_PINGED, len(quiet))):
                nursery.start_soon(self._members.ping, peer_of(announcement))
        for _ in range(1 if self.coordinate.error < SETTLED else UNSETTLED_PASSES):
            for announcement in self._rng.sample(others, min(MAX_OBSERVED, len(others))):
                if (rtt_s := self._messenger.rtt_s(peer_of(announcement))) is not None:
                    self._observe(announcement, rtt_s)

    async def next_look(self) -> str:
        """After an announcement period: what `look` says then."""
        await trio.sleep(self._members.config.announce_s * self._rng.uniform(0.9, 1.1))
        await self.measure()
        return self.look()

    def look(self) -> str:
        """The region to be in from now on."""
        if self._fixed is not None:
            return self._fixed
        announced = [a for a in self._members.everyone() if a.peer_id != self._members.me and a.coordinate is not None]
        placed = [Placed(peer_of(a), a.region, a.coordinate) for a in announced if a.coordinate is not None]
        placed.append(Placed(self._members.me, self._choice.region, self.coordinate))
        return self._choice.look(self.coordinate, regions_of(placed))

    def forget(self, peer: PeerId) -> None:
        """It has left."""
        self._locator.forget(peer)

    def _observe(self, announcement: Announcement, rtt_s: float) -> None:
        if announcement.coordinate is not None:
            self._locator.observe(peer_of(announcement), announcement.coordinate, rtt_s, trio.current_time())
