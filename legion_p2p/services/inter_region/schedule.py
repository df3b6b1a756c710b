"""Which region to meet about a shard, when, in which codec, and who speaks for whom: by what all announce."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from legion_p2p.core.adapt import CodecCost
from legion_p2p.core.announcement import Announcement, peer_of, version_at
from legion_p2p.core.bandwidth import RateEstimator
from legion_p2p.core.identity import PeerId
from legion_p2p.core.intervals import Interval, Way, interval, rate_between
from legion_p2p.core.matching import epoch_of, partner, patience
from legion_p2p.core.membership import weights_of
from legion_p2p.core.relays import representative_of, spoken_share
from legion_p2p.core.wire import Reply, SyncReply, SyncRequest
from legion_p2p.services.inter_region.links import CENTER, LastSync, Links
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import Messenger
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService

WHOLE = "bf16"  # codec of first meetings; what it rounds away is in the next difference
MAX_RATES = 256  # peers of other regions to which a rate was measured
SILENT = 4  # times the versions between two meetings, after which an owner whose relay brings nothing meets others itself


class Schedule:
    """Decides; nothing here waits."""

    def __init__(self, shards: ShardService, members: MemberService, messenger: Messenger, links: Links) -> None:
        self._shards = shards
        self._members = members
        self._messenger = messenger
        self._links = links
        self._rounds = shards.spec.round
        self._met: dict[int, LastSync] = {}
        self._rates: OrderedDict[PeerId, RateEstimator] = OrderedDict()

    def met(self, replica: Replica) -> LastSync:
        """When this shard met others; from now on, if nothing is known."""
        if replica.shard not in self._met:
            self._met[replica.shard] = LastSync(replica.chain.version, trio.current_time(), every=self._rounds.cross_every)
        return self._met[replica.shard]

    def forget(self, shard: int) -> None:
        """This peer does not speak for the shard."""
        self._met.pop(shard, None)
        self._links.forget_region(shard)

    def clear(self) -> None:
        self._met.clear()

    def by_region(self) -> dict[str, list[Announcement]]:
        """The members that may own, by region."""
        members: dict[str, list[Announcement]] = {}
        for announcement in self._members.everyone():
            if announcement.ready and announcement.weight > 0 and announcement.region:
                members.setdefault(announcement.region, []).append(announcement)
        return members

    # who

    def owner(self, region: str, shard: int) -> PeerId | None:
        """Of the shard in a region, or of its center variable."""
        everyone = self._members.everyone()
        if region == CENTER:
            weights = {peer_of(a): a.weight for a in everyone if a.ready and a.weight > 0}
        else:
            weights = weights_of(everyone, region)
        return self._shards.placement.owners(region, weights)[shard].owner

    def speaker(self, region: str, shard: int) -> PeerId | None:
        """The owner, or the relay that meets other regions in its stead."""
        owner = self.owner(region, shard)
        if owner is None or region == CENTER:
            return owner
        in_region = [a for a in self._members.everyone() if a.region == region]
        announced = next((a for a in in_region if a.peer_id == owner), None)
        return owner if announced is None else representative_of(self._shards.run, shard, announced, in_region)

    def may_speak(self, peer: PeerId, region: str, shard: int) -> bool:
        """Whether it is right for `peer` to meet us: an owner may always, for its relay may have failed it."""
        return peer in (self.owner(region, shard), self.speaker(region, shard))

    def volunteers(self, peer: PeerId) -> bool:
        """Whether `peer` announces itself as a relay of this region."""
        member = self._members.table.get(peer)
        return member is not None and member.announcement.relay and member.announcement.region == self._shards.region

    # when

    def due(self, replica: Replica) -> str | None:
        """The region to meet now; None: nobody."""
        met, version, least = self.met(replica), replica.chain.version, self._rounds.cross_every
        if version < max(met.last + least, met.not_before):
            return None
        mine = self._shards.region
        members = self.by_region()
        if not any(region != mine for region in members):
            return None
        if self._rounds.cross_rule == "center":
            other, times = CENTER, 1
        else:
            versions = {region: _versions(announced, replica.shard) for region, announced in members.items()}
            matched = partner(self._shards.run, replica.shard, epoch_of(versions, least), members.keys(), mine)
            if matched is None:
                return None
            other, times = matched, patience(mine, matched, 1)
        if replica.round is not None and self.speaker(mine, replica.shard) != self._shards.me:
            times = SILENT
        return other if version >= met.last + times * self.interval(replica, other).every else None

    def is_too_early(self, replica: Replica, other: str) -> bool:
        """Whether another region asks much more often than what lies between us carries: the sender may be draining us."""
        met = self.met(replica)
        if met.by_region.get(other) == replica.chain.version:
            return True
        every = self.interval(replica, other).every
        return every > self._rounds.cross_every and 4 * (replica.chain.version - met.last) < every

    # how

    def interval(self, replica: Replica, other: str) -> Interval:
        """What the next meeting with this region is in, and how many versions after the last."""
        link = self._links.get(replica.shard, self._shards.region, other)
        rounds = self._rounds
        now = link.interval or Interval(rounds.cross_every, rounds.cross_codec)
        if rounds.synchronous:
            return now if link.known is not None else Interval(now.every, WHOLE)
        ways = self._ways(replica.shard, other)
        version_s = self.met(replica).version_s(replica.chain.version, trio.current_time())
        bounds = (version_s, rounds.cross_every, max(rounds.cross_every, rounds.max_cross_every))
        if link.known is None:
            return interval(self._costs(replica, WHOLE), ways, *bounds, Interval(rounds.cross_every, WHOLE))
        link.interval = interval(self._costs(replica, *rounds.allowed_cross_codecs()), ways, *bounds, now)
        return link.interval

    def _costs(self, replica: Replica, *names: str) -> list[CodecCost]:
        """As on this shard, of which small tensors stay dense."""
        return [CodecCost(name, self._shards.codec_of(replica, name).bits_per_element) for name in names]

    def rate(self, peer: PeerId) -> RateEstimator:
        """Of what meetings sent to this peer, all shards together; their answers took part of the time, so it may be too low."""
        rate = self._rates.setdefault(peer, RateEstimator(best=True, n_samples=3))
        self._rates.move_to_end(peer)
        while len(self._rates) > MAX_RATES:
            self._rates.popitem(last=False)
        return rate

    @contextmanager
    def measuring(self, peer: PeerId, message: SyncRequest) -> Iterator[Callable[[Reply], None]]:
        """Measures how fast a meeting goes, unless most of what it takes is the delay. Its answer takes part of the time."""
        rate, began, rtt_s = self.rate(peer), trio.current_time(), self._messenger.rtt_s(peer) or 0.0
        rate.begin(began)
        tells = False

        def came(reply: Reply) -> None:
            nonlocal tells
            if isinstance(reply, SyncReply) and trio.current_time() - began > 2 * rtt_s:
                tells = True
                rate.moved(len(message.payload), trio.current_time())

        try:
            yield came
        finally:
            rate.end(trio.current_time(), began if tells else None, rtt_s)

    def _ways(self, shard: int, other: str) -> list[Way]:
        """There and back, between those who speak for both regions."""
        everyone, mine = self._members.everyone(), self._shards.region
        by_peer = {peer_of(a): a for a in everyone}
        us, them = (by_peer.get(p) for p in (self._shards.me, self.speaker(other, shard)) if p is not None)
        if us is None or them is None or us is them:
            return []
        measured, own = self.rate(peer_of(them)).rate_bps(trio.current_time()), self._messenger.bandwidth()
        numel = self._shards.plan.numel
        n_ours = numel * spoken_share(peer_of(us), [a for a in everyone if a.region == mine])
        if other == CENTER:
            n_theirs = numel * them.weight / sum(a.weight for a in everyone if a.ready) * len(self.by_region())
        else:
            n_theirs = numel * spoken_share(peer_of(them), [a for a in everyone if a.region == other])
        return [
            Way(n_ours, rate_between(us, them, measured, own.upload_bps, own.upload_limit_bps)),
            Way(n_theirs, rate_between(them, us, measured, own.download_limit_bps)),
        ]


def _versions(announced: Sequence[Announcement], shard: int) -> list[int]:
    versions = (version_at(a.marks, shard) for a in announced)
    return [version for version in versions if version is not None]
