"""Where this peer is, and which region it should be in: round trips measured by the way, and a look at what others announce.

joining -> PROBED members are pinged, and the coordinate is fitted to their round trips before the first look
each announcement period -> what round trips were measured anyway move the coordinate; some members are pinged (core/pings.py);
                            a look

Until the first look it announces no coordinate: others would measure themselves by one that means nothing. A peer that is doubted
by its witnesses (core/witnesses.py) moves no coordinate and no region.
"""

import random

import trio

from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.coordinates import Coordinate, Locator, SteadyCoordinate
from legion_p2p.core.envoys import sizes
from legion_p2p.core.identity import PeerId
from legion_p2p.core.pings import PingPlan, RoundTrips
from legion_p2p.core.regions import FEW_SAMPLES, Measured, Placed, RegionChoice, expected_round_s, regions_of
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.witnesses import Account, WitnessBook, pack_testimonies
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.tensor import codec

PROBED = 16  # members that a newcomer measures: more would cost each member of a large run a ping for every newcomer
PINGS = FEW_SAMPLES  # of a newcomer to each; the first includes the making of the connection
FITTINGS = 30  # passes over what a newcomer measured, after which its coordinate stands still: measured
MAX_OBSERVED = 32  # members whose round trips move the coordinate in a period
MAX_OBSERVED_SETTLED = 8  # of one that stands still already: others move as little
MAX_PERIODS = 3  # times the shortest announcement period, between two looks: one that should move does so in half a minute
SETTLED = 0.3  # a coordinate of less error moves once by each round trip, one of more UNSETTLED_PASSES times
UNSETTLED_PASSES = 4


class RegionService:
    """The network coordinate of this peer, and its choice of a region."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._members = members
        self._messenger = ctx.messenger
        self._rng = random.Random(members.me)
        self._locator = Locator(self._rng)
        self._steady = SteadyCoordinate()
        self._fixed = None if ctx.config.region == AUTO_REGION else ctx.config.region
        self._choice = RegionChoice(members.me)
        self._local_steps = ctx.spec.round.local_steps
        self._least_bits = _least_bits(ctx.spec.round) * ctx.plan.numel
        self._placed = self._fixed is not None
        self._book = WitnessBook(members.me)
        self._plan = PingPlan(members.me)
        self._planned_at: object = None  # the revision of the members that the plan was made for
        self._read: dict[PeerId, float] = {}  # what the messenger last said: only what is new is another sample

    @property
    def coordinate(self) -> Coordinate | None:
        """Where this peer says it is; None before it has looked around."""
        return self._steady.look(self._locator.coordinate) if self._placed else None

    @property
    def testimonies(self) -> bytes:
        """What this peer measured of those that it is a witness of, packed."""
        measured = ((peer, self._locator.least_s(peer)) for peer in self._book.subjects)
        return pack_testimonies([(peer, rtt_s) for peer, rtt_s in measured if rtt_s is not None])

    async def first(self) -> str:
        """The region to begin in, of those of the members known now."""
        if self._fixed is not None:
            return self._fixed
        self._look_at_members()
        known = self._plan.neighbours
        probed = self._rng.sample(known, min(PROBED, len(known)))
        async with trio.open_nursery() as nursery:
            for peer in probed:
                nursery.start_soon(self._ping, peer, PINGS)
        self._fit(FITTINGS)
        self._placed = True
        return self.look()

    async def measure(self) -> None:
        """Once per announcement period: take in the round trips known, and ping a few members that little is known of."""
        self._look_at_members()
        for member in self._members.table.counted():
            peer = member.peer_id
            rtt_s = self._messenger.rtt_s(peer)
            if rtt_s is not None and rtt_s != self._read.get(peer):
                self._read[peer] = rtt_s
                self._sample(peer, rtt_s)
        self._hear_witnesses()
        if pinged := self._plan.due(self._book.subjects, self._known, trio.current_time()):
            async with trio.open_nursery() as nursery:
                for peer in pinged:
                    nursery.start_soon(self._ping, peer, 1)
        if self._locator.coordinate.error < SETTLED:
            self._fit(1, MAX_OBSERVED_SETTLED)
        else:
            self._fit(UNSETTLED_PASSES)

    async def next_look(self) -> str:
        """After an announcement period: what `look` says then."""
        period_s = min(self._members.period_s(), MAX_PERIODS * self._members.config.announce_s)
        await trio.sleep(period_s * self._rng.uniform(0.9, 1.1))
        await self.measure()
        return self.look()

    def look(self) -> str:
        """The region to be in from now on."""
        if self._fixed is not None:
            return self._fixed
        here, others = self._locator.coordinate, self._others()
        placed = [Placed(peer_of(a), a.region, a.coordinate) for a in others if a.coordinate is not None]
        placed.append(Placed(self._members.me, self._choice.region, here))
        told = [*others, self._members.own.now()]
        round_s = expected_round_s(
            self._local_steps, [a.step_s for a in told], self._least_bits, [a.upload_bps for a in told if a.step_s]
        )
        return self._choice.look(here, regions_of(placed, self._book.doubted, sizes(told)), self._measured(placed), round_s)

    def is_doubted(self, peer: PeerId) -> bool:
        """Its witnesses measured something else than the coordinate that it announces."""
        return peer in self._book.doubted

    def forget(self, peer: PeerId) -> None:
        """It has left."""
        self._locator.forget(peer)
        self._read.pop(peer, None)

    def _measured(self, placed: list[Placed]) -> dict[PeerId, Measured]:
        found = ((p.peer_id, self._locator.least_s(p.peer_id), self._locator.n_samples(p.peer_id)) for p in placed)
        return {peer: Measured(least_s, n) for peer, least_s, n in found if least_s is not None}

    def _others(self) -> list[Announcement]:
        return [m.announcement for m in self._members.table.counted()]

    def _look_at_members(self) -> None:
        table = self._members.table
        if self._planned_at != table.roles_revision:
            self._planned_at = table.roles_revision
            self._plan.members({m.peer_id: m.announcement.region for m in table.counted()})

    def _known(self, peer: PeerId) -> RoundTrips:
        least_s = self._locator.least_s(peer)
        return RoundTrips() if least_s is None else RoundTrips(self._locator.n_samples(peer), least_s)

    def _sample(self, peer: PeerId, rtt_s: float) -> None:
        now = trio.current_time()
        self._plan.measured(peer, rtt_s, self._known(peer), now)
        self._locator.sample(peer, rtt_s, now)

    def _hear_witnesses(self) -> None:
        """Once per announcement period: which members to measure, and which not to believe."""
        accounts = [Account(peer_of(a), a.coordinate, a.testimonies) for a in self._others()]
        self._book.hear([*accounts, Account(self._members.me, self.coordinate, self.testimonies)])

    async def _ping(self, peer: PeerId, n: int) -> None:
        for _ in range(n):
            self._plan.tried(peer, trio.current_time())
            if (rtt_s := await self._members.ping(peer)) is not None:
                self._sample(peer, rtt_s)

    def _fit(self, n_passes: int, most: int = MAX_OBSERVED) -> None:
        """Move the coordinate by the round trips to the members that were measured and say where they are."""
        claims = {
            peer_of(a): a.coordinate
            for a in self._others()
            if a.coordinate is not None and a.peer_id not in self._book.doubted and self._locator.n_samples(peer_of(a))
        }
        for _ in range(n_passes):
            for peer in self._rng.sample(sorted(claims), min(most, len(claims))):
                self._locator.fit(peer, claims[peer])


def _least_bits(rounds: RoundSpec) -> float:
    """Of an element that is pushed once and updated once in the sparsest codecs of the run."""
    pushes, updates = (rounds.push_codec, *rounds.push_codecs), (rounds.update_codec, *rounds.update_codecs)
    return sum(min(codec.get(name).bits_per_element for name in names) for names in (pushes, updates))
