"""Where this peer is, and which region it should be in: round trips measured by the way, and a look at what others announce.

joining -> PROBED members are pinged, and the coordinate is fitted to their round trips before the first look
each announcement period -> what round trips were measured anyway move the coordinate; those least known are pinged, and one of
                            those that this peer is a witness of; a look

Until the first look it announces no coordinate: others would measure themselves by one that means nothing. A peer that is doubted
by its witnesses (core/witnesses.py) moves no coordinate and no region.
"""

import math
import random
from heapq import nsmallest

import trio

from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.coordinates import Coordinate, Locator
from legion_p2p.core.identity import PeerId
from legion_p2p.core.regions import FEW_SAMPLES, MANY_SAMPLES, Measured, Placed, RegionChoice, regions_of
from legion_p2p.core.witnesses import Account, Ring, doubted, pack_testimonies
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService

PROBED = 16  # members that a newcomer measures: more would cost each member of a large run a ping for every newcomer
PINGS = FEW_SAMPLES  # of a newcomer to each; the first includes the making of the connection
FITTINGS = 30  # passes over what a newcomer measured, after which its coordinate stands still: measured
MAX_OBSERVED = 32  # round trips that are taken in each period
SETTLED = 0.3  # a coordinate of less error moves once by each round trip, one of more UNSETTLED_PASSES times
UNSETTLED_PASSES = 4
PING_AGAIN_S = 15.0  # between two pings of a member of which enough round trips are known: paths change slowly
PINGED = 3  # members that are pinged each period: 500 bytes, and 200 members all in a few minutes


class RegionService:
    """The network coordinate of this peer, and its choice of a region."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._members = members
        self._messenger = ctx.messenger
        self._rng = random.Random(members.me)
        self._locator = Locator(self._rng)
        self._fixed = None if ctx.config.region == AUTO_REGION else ctx.config.region
        self._choice = RegionChoice(members.me)
        self._placed = self._fixed is not None
        self._subjects: list[PeerId] = []
        self._doubted: frozenset[PeerId] = frozenset()
        self._pinged_at: dict[PeerId, float] = {}
        self._read: dict[PeerId, float] = {}  # what the messenger last said: only what is new is another sample

    @property
    def coordinate(self) -> Coordinate | None:
        """Where this peer is; None before it has looked around."""
        return self._locator.coordinate if self._placed else None

    @property
    def testimonies(self) -> bytes:
        """What this peer measured of those that it is a witness of, packed."""
        measured = ((peer, self._locator.least_s(peer)) for peer in self._subjects)
        return pack_testimonies([(peer, rtt_s) for peer, rtt_s in measured if rtt_s is not None])

    async def first(self) -> str:
        """The region to begin in, of those of the members known now."""
        if self._fixed is not None:
            return self._fixed
        known = [m.peer_id for m in self._members.table.counted()]
        probed = self._rng.sample(known, min(PROBED, len(known)))
        async with trio.open_nursery() as nursery:
            for peer in probed:
                nursery.start_soon(self._ping, peer, PINGS)
        self._fit(FITTINGS)
        self._placed = True
        return self.look()

    async def measure(self) -> None:
        """Once per announcement period: take in the round trips known, and ping a few members that little is known of."""
        others = [m.peer_id for m in self._members.table.counted()]
        for peer in others:
            rtt_s = self._messenger.rtt_s(peer)
            if rtt_s is not None and rtt_s != self._read.get(peer):
                self._read[peer] = rtt_s
                self._locator.sample(peer, rtt_s, trio.current_time())
        self._hear_witnesses()
        now = trio.current_time()
        subject = min((peer for peer in self._subjects if self._needs_ping(peer, now)), key=self._last_pinged, default=None)
        wanted = [peer for peer in others if self._needs_ping(peer, now)]
        least_known = nsmallest(PINGED, wanted, key=lambda peer: (self._locator.n_samples(peer), self._last_pinged(peer), peer))
        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys([*least_known, *filter(None, [subject])]):
                nursery.start_soon(self._ping, peer, 1)
        self._fit(1 if self._locator.coordinate.error < SETTLED else UNSETTLED_PASSES)

    async def next_look(self) -> str:
        """After an announcement period: what `look` says then."""
        await trio.sleep(self._members.config.announce_s * self._rng.uniform(0.9, 1.1))
        await self.measure()
        return self.look()

    def look(self) -> str:
        """The region to be in from now on."""
        if self._fixed is not None:
            return self._fixed
        here, others = self._locator.coordinate, self._others()
        placed = [Placed(peer_of(a), a.region, a.coordinate) for a in others if a.coordinate is not None]
        placed.append(Placed(self._members.me, self._choice.region, here))
        return self._choice.look(here, regions_of(placed, self._doubted), self._measured(placed))

    def is_doubted(self, peer: PeerId) -> bool:
        """Its witnesses measured something else than the coordinate that it announces."""
        return peer in self._doubted

    def forget(self, peer: PeerId) -> None:
        """It has left."""
        self._locator.forget(peer)
        self._pinged_at.pop(peer, None)
        self._read.pop(peer, None)

    def _measured(self, placed: list[Placed]) -> dict[PeerId, Measured]:
        found = ((p.peer_id, self._locator.least_s(p.peer_id), self._locator.n_samples(p.peer_id)) for p in placed)
        return {peer: Measured(least_s, n) for peer, least_s, n in found if least_s is not None}

    def _others(self) -> list[Announcement]:
        return [m.announcement for m in self._members.table.counted()]

    def _needs_ping(self, peer: PeerId, now: float) -> bool:
        return self._locator.n_samples(peer) < MANY_SAMPLES or now - self._last_pinged(peer) >= PING_AGAIN_S

    def _last_pinged(self, peer: PeerId) -> float:
        return self._pinged_at.get(peer, -math.inf)

    def _hear_witnesses(self) -> None:
        """Once per announcement period: which members to measure, and which not to believe."""
        accounts = [Account(peer_of(a), a.coordinate, a.testimonies) for a in self._others()]
        accounts.append(Account(self._members.me, self.coordinate, self.testimonies))
        ring = Ring(accounts)
        self._subjects = ring.subjects_of(self._members.me)
        self._doubted = doubted(ring)

    async def _ping(self, peer: PeerId, n: int) -> None:
        for _ in range(n):
            self._pinged_at[peer] = trio.current_time()
            if (rtt_s := await self._members.ping(peer)) is not None:
                self._locator.sample(peer, rtt_s, trio.current_time())

    def _fit(self, n_passes: int) -> None:
        """Move the coordinate by the round trips to the members that say where they are."""
        others = self._others()
        claims = {peer_of(a): a.coordinate for a in others if a.coordinate is not None and a.peer_id not in self._doubted}
        for _ in range(n_passes):
            for peer in self._rng.sample(sorted(claims), min(MAX_OBSERVED, len(claims))):
                self._locator.fit(peer, claims[peer])
