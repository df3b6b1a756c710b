"""Which region to sync with about a shard, when, in which codec, and which peer represents which region: by what all announce.

Nothing here waits. The rules are in core/matching.py, core/sync_times.py, core/intervals.py and core/relays.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from legion_p2p.core.adapt import CodecCost
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.eligible import Eligible, eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.intervals import Direction, Interval, interval, rate_between
from legion_p2p.core.matching import SILENT, epoch_of, partner, patience
from legion_p2p.core.rate_estimator import RateEstimator
from legion_p2p.core.relays import representative_of, represented_share
from legion_p2p.core.sync_times import SyncTimes
from legion_p2p.core.wire import GetRepresentative, Message, RepresentativeFound, SyncReply, SyncRequest
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.directory import RegionDirectory
from legion_p2p.services.inter_region.pairs import CENTER, LastSync, PairStates
from legion_p2p.services.inter_region.synced import SyncedShard, SyncedShards
from legion_p2p.services.membership.service import MemberService
from legion_p2p.tensor.travel import Travel

WHOLE = "bf16"  # codec of the first sync of two regions; what it rounds away is in the next difference
MAX_RATES = 256  # peers of other regions to which a rate was measured


class Schedule:
    """The syncs of one peer's shards."""

    def __init__(
        self, ctx: PeerContext, members: MemberService, shards: SyncedShards, pairs: PairStates, directory: RegionDirectory
    ) -> None:
        self._shards = shards
        self._members = members
        self._messenger = ctx.messenger
        self._pairs = pairs
        self._directory = directory
        self._rounds = shards.rounds
        self._last: dict[int, LastSync] = {}
        self._everyone: Sequence[Announcement] = ()
        self._excluded: frozenset[PeerId] = frozenset()
        self._believed: Sequence[Announcement] = ()
        self._owners: dict[str, Eligible] = {}  # by region, among these
        self._rates: BoundedMap[PeerId, RateEstimator] = BoundedMap(MAX_RATES)

    def last_sync(self, replica: SyncedShard) -> LastSync:
        """The last sync of this shard; counted from now on, if nothing is known."""
        if replica.shard not in self._last:
            times = SyncTimes(replica.version, trio.current_time())
            self._last[replica.shard] = LastSync(times, Travel(self._rounds.sync_every))
        return self._last[replica.shard]

    def forget(self, shard: int) -> None:
        """This peer does not represent its region for the shard."""
        self._last.pop(shard, None)
        self._pairs.forget_region(shard)

    def clear(self) -> None:
        self._last.clear()

    def has_others(self) -> bool:
        """Members of another region are known that may own: there is somebody to sync with."""
        return any(region != self._shards.region for region in self.by_region())

    def by_region(self) -> dict[str, list[Announcement]]:
        """The members that may own, by region."""
        members: dict[str, list[Announcement]] = {}
        for announcement in self._all_believed():
            if announcement.ready and announcement.weight > 0 and announcement.region:
                members.setdefault(announcement.region, []).append(announcement)
        return members

    # with whom

    def owner(self, region: str, shard: int) -> PeerId | None:
        """Of the shard in a region, or of its center variable. Of a region that this peer does not know in full, as found out."""
        if self._directory.is_hidden(region):
            return self._named(region, shard)[1]
        if region == self._shards.region:
            return self._shards.owner_here(shard)
        return self._shards.owner_there(region, shard, self._eligible(region))

    def _all_believed(self) -> Sequence[Announcement]:
        """All members, without those that are proven to have lied as owners. The same object until that changes."""
        everyone, excluded = self._members.roster.everyone(), self._members.roster.excluded()
        if everyone is not self._everyone or excluded is not self._excluded:
            self._everyone, self._excluded, self._owners = everyone, excluded, {}
            self._believed = [a for a in everyone if peer_of(a) not in excluded] if excluded else everyone
        return self._believed

    def _eligible(self, region: str) -> Eligible:
        everyone = self._all_believed()
        if region not in self._owners:
            # The members that all regions know own the center variables.
            members = [a for a in everyone if (a.envoy if region == CENTER else a.region == region)]
            self._owners[region] = eligible(self._shards.run, region, members)
        return self._owners[region]

    def representative(self, region: str, shard: int) -> PeerId | None:
        """The owner, or the relay that syncs with other regions on its behalf."""
        if self._directory.is_hidden(region):
            return self._named(region, shard)[0]
        owner = self.owner(region, shard)
        if owner is None or region == CENTER:
            return owner
        in_region = [a for a in self._all_believed() if a.region == region]
        announced = next((a for a in in_region if a.peer_id == owner), None)
        return owner if announced is None else representative_of(self._shards.run, shard, announced, in_region)

    def is_hidden(self, region: str) -> bool:
        """Not all members of `region` are known here: who represents it is found out by asking."""
        return self._directory.is_hidden(region)

    def may_represent(self, peer: PeerId, region: str, shard: int) -> bool:
        """Whether this peer syncs with `peer` about the shard: with an owner always, because its relay may have failed it."""
        return peer in (self.owner(region, shard), self.representative(region, shard))

    def _named(self, region: str, shard: int) -> tuple[PeerId | None, PeerId | None]:
        """The representative and the owner, as an envoy of the region named them."""
        found = self._directory.get(region, shard)
        if found is None or found.representative is None or found.owner is None:
            return None, None
        named = peer_of(found.representative), peer_of(found.owner)
        return named if self._members.roster.excluded().isdisjoint(named) else (None, None)

    def about(self, message: GetRepresentative) -> RepresentativeFound:
        """Who represents a shard of this peer's region. Raises: NetworkError."""
        mine = self._shards.region
        if message.region != mine:
            raise NetworkError(f"this peer is in region {mine!r}, not in {message.region!r}")
        if message.shard >= self._shards.n_shards:
            raise NetworkError(f"shard {message.shard}: the run has {self._shards.n_shards}")
        found = self.representative(mine, message.shard), self.owner(mine, message.shard)
        named = list(dict.fromkeys(peer for peer in found if peer is not None))
        share = 0.0
        if named:
            in_region = [a for a in self._all_believed() if a.region == mine]
            share = represented_share(named[0], in_region, self._eligible(mine).weights)
        signed = [self._members.signed_of(peer) for peer in named]
        return RepresentativeFound(tuple(s for s in signed if s is not None), min(share, 1.0))

    def is_relay(self, peer: PeerId) -> bool:
        """Whether `peer` announces itself as a relay of this region."""
        member = self._members.table.get(peer)
        return member is not None and member.announcement.relay and member.announcement.region == self._shards.region

    # when

    def due(self, replica: SyncedShard) -> str | None:
        """The region to sync with now; None: no region."""
        times, version, least = self.last_sync(replica).times, replica.version, self._rounds.sync_every
        if not times.is_open(version, least):
            return None
        mine = self._shards.region
        members = self.by_region()
        if not any(region != mine for region in members):
            return None
        if self._rounds.sync_rule == "center":
            other, factor = CENTER, 1
        else:
            versions = {region: self._versions(announced, replica.shard) for region, announced in members.items()}
            matched = partner(self._shards.run, replica.shard, epoch_of(versions, least), members.keys(), mine)
            if matched is None:
                return None
            other, factor = matched, patience(mine, matched, 1)
        if replica.is_owned and self.representative(mine, replica.shard) != self._shards.me:
            factor = SILENT
        return other if times.is_due(version, factor * self.interval(replica, other).every) else None

    def is_too_early(self, replica: SyncedShard, other: str) -> bool:
        """Whether another region asks for a sync much more often than the connection carries."""
        every = self.interval(replica, other).every
        return self.last_sync(replica).times.is_too_early(other, replica.version, every, self._rounds.sync_every)

    # how

    def interval(self, replica: SyncedShard, other: str) -> Interval:
        """What the next sync with this region is encoded in, and how many versions after the last it comes."""
        pair = self._pairs.get(replica.shard, self._shards.region, other)
        rounds = self._rounds
        now = pair.interval or Interval(rounds.sync_every, rounds.sync_codec)
        if rounds.synchronous:
            return now if pair.known is not None else Interval(now.every, WHOLE)
        ways = self._ways(replica.shard, other)
        version_s = self.last_sync(replica).times.version_s(replica.version, trio.current_time())
        bounds = (version_s, rounds.sync_every, max(rounds.sync_every, rounds.max_sync_every))
        if pair.known is None:
            return interval(self._costs(replica, WHOLE), ways, *bounds, Interval(rounds.sync_every, WHOLE))
        pair.interval = interval(self._costs(replica, *rounds.allowed_sync_codecs()), ways, *bounds, now)
        return pair.interval

    def _costs(self, replica: SyncedShard, *names: str) -> list[CodecCost]:
        """As on this shard, of which small tensors stay dense."""
        return [CodecCost(name, self._shards.codec_of(replica.shard, name).bits_per_element) for name in names]

    def rate(self, peer: PeerId) -> RateEstimator:
        """The rate at which this peer is sent syncs, all shards together. Answers take part of the time, so it may be too low."""
        rate = self._rates.setdefault(peer, RateEstimator(best=True, n_samples=3))
        self._rates.touch(peer)
        return rate

    @contextmanager
    def measuring(self, peer: PeerId, message: SyncRequest) -> Iterator[Callable[[Message], None]]:
        """Measures how quickly a sync goes, unless most of what it takes is the delay; give what is yielded the reply."""
        rate, began, rtt_s = self.rate(peer), trio.current_time(), self._messenger.rtt_s(peer) or 0.0
        rate.begin(began)
        tells = False

        def came(reply: Message) -> None:
            nonlocal tells
            if isinstance(reply, SyncReply) and trio.current_time() - began > 2 * rtt_s:
                tells = True
                rate.moved(len(message.payload), trio.current_time())

        try:
            yield came
        finally:
            rate.end(trio.current_time(), began if tells else None, rtt_s)

    def _ways(self, shard: int, other: str) -> list[Direction]:
        """There and back, between the representatives of both regions."""
        everyone, mine = self._all_believed(), self._shards.region
        by_peer = {peer_of(a): a for a in everyone}
        found = self._directory.get(other, shard) if self._directory.is_hidden(other) else None
        if found is not None and found.representative is not None:
            by_peer[peer_of(found.representative)] = found.representative
        representative = self.representative(other, shard)
        us, them = by_peer.get(self._shards.me), None if representative is None else by_peer.get(representative)
        if us is None or them is None or us is them:
            return []
        measured, own = self.rate(peer_of(them)).rate_bps(trio.current_time()), self._messenger.bandwidth()
        numel = self._shards.numel
        n_ours = numel * represented_share(peer_of(us), [a for a in everyone if a.region == mine], self._eligible(mine).weights)
        weights = self._eligible(other).weights
        if other == CENTER:
            n_theirs = numel * weights.get(peer_of(them), 0.0) / math.fsum(weights.values()) * len(self.by_region())
        elif found is not None:
            n_theirs = numel * found.share
        else:
            n_theirs = numel * represented_share(peer_of(them), [a for a in everyone if a.region == other], weights)
        return [
            Direction(n_ours, rate_between(us, them, measured, own.upload_bps, own.upload_limit_bps)),
            Direction(n_theirs, rate_between(them, us, measured, own.download_limit_bps)),
        ]

    def _versions(self, announced: Sequence[Announcement], shard: int) -> list[int]:
        versions = (self._shards.version_at(a, shard) for a in announced)
        return [version for version in versions if version is not None]
