"""Which peer of another region syncs a shard, where this peer does not know all of its members.

the envoys' word is that the region has more members than are known here, or owning takes time there (`owner_rounds`), which
    only its own members can tell                                         -> an envoy is asked, and its answer kept
the peer that was named answers no more, or somebody else says that it is the one -> an envoy is asked again, after a while
"""

from dataclasses import dataclass, replace

import trio

from legion_p2p.core.announcement import Announcement, open_signed, peer_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.envoys import sizes
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.regions import GetRepresentative, RepresentativeFound
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc

ASK_DEADLINE_S = 5.0
ASK_AGAIN_S = 10.0  # about one shard of one region: whoever claims to represent it costs one question in that time
STALE_S = 120.0  # after which an answer is asked for again: owners change as members come and go
MAX_KEPT = 4096  # answers: those of all shards of a region, or of a few shards of many regions


@dataclass(frozen=True)
class Represented:
    """What an envoy said of one shard of its region."""

    representative: Announcement | None
    owner: Announcement | None
    share: float
    """Of all shards of its region, those that the representative syncs."""
    at_s: float


class RegionDirectory:
    """What one peer has found out about other regions."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self._run = ctx.run
        self._is_owned_by_age = ctx.spec.round.owner_rounds > 0
        self._members = members
        self._messenger = ctx.messenger
        self._rpc = Rpc(ctx.messenger)
        self._rng = ctx.rng
        self._found: BoundedMap[tuple[str, int], Represented] = BoundedMap(MAX_KEPT)
        self._introduced: BoundedMap[PeerId, None] = BoundedMap(MAX_KEPT)
        self._sizes_of: object = None
        self._hidden: frozenset[str] = frozenset()

    def is_hidden(self, region: str) -> bool:
        """Not all members of `region`, another one, are known here."""
        everyone = self._members.roster.everyone()
        if everyone is not self._sizes_of:
            self._sizes_of = everyone
            known: dict[str, int] = {}
            for a in everyone:
                known[a.region] = known.get(a.region, 0) + 1
            told = sizes(everyone)
            self._hidden = frozenset(r for r in known if r and (self._is_owned_by_age or told.get(r, 0) > known[r]))
        return region in self._hidden and region != self._members.table.region

    def get(self, region: str, shard: int) -> Represented | None:
        """What was found out; None: nothing yet."""
        return self._found.get((region, shard))

    async def look_up(self, region: str, shard: int, claimant: PeerId | None = None) -> None:
        """Find out who represents a shard of `region`. `claimant`: a peer that says that it does."""
        if not self.is_hidden(region):
            return
        known, now = self.get(region, shard), trio.current_time()
        if known is not None:
            named = {peer_of(a) for a in (known.representative, known.owner) if a is not None}
            is_right = claimant in named if claimant is not None else bool(named)
            if now - known.at_s < (STALE_S if is_right else ASK_AGAIN_S):
                return
        # Those that come before the answer ask nobody.
        waits = Represented(None, None, 0.0, now) if known is None else replace(known, at_s=now)
        self._found[region, shard] = waits
        self._found.touch((region, shard))
        found = await self._ask(region, shard)
        self._found[region, shard] = found or Represented(None, None, 0.0, now)
        self._found.touch((region, shard))

    async def _ask(self, region: str, shard: int) -> Represented | None:
        envoys = [m.peer_id for m in self._members.table.counted() if m.announcement.region == region and m.announcement.envoy]
        question = GetRepresentative(self._run, region, shard)
        for envoy in self._rng.sample(envoys, len(envoys)):
            try:
                await self._introduce(envoy)
                reply = await self._rpc.ask(envoy, question, within_s=ASK_DEADLINE_S)
                with self._rpc.checking(envoy, "bad representative"):
                    found = self._read(region, reply)
                if found.representative is not None:
                    await self._introduce(peer_of(found.representative))
                return found
            except NetworkError:
                continue
        return None

    async def _introduce(self, peer: PeerId) -> None:
        """Show it what this peer is admitted by: one that is not in its table is refused otherwise."""
        if not self._members.access.admission.is_open and peer not in self._introduced:
            self._introduced[peer] = None
            await self._members.exchange_with(peer)

    def _read(self, region: str, reply: RepresentativeFound) -> Represented:
        """Raises: DecodeError."""
        named = [open_signed(signed) for signed in reply.announcements]
        if not named or any(a.run != self._run or a.region != region for a in named):
            raise DecodeError(f"members of region {region} were asked for")
        for a in named:
            if refusal := self._members.access.refusal(peer_of(a), a.token):
                raise DecodeError(f"{a.peer_id} represents nobody here: {refusal}")
            self._messenger.add_addresses(peer_of(a), a.addresses)
        return Represented(named[0], named[-1], reply.share, trio.current_time())
