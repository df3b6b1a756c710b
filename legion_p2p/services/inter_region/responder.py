"""Answering another region that asks for a sync.

    the sender represents the shard in its region, and it is not much too early -> this side moves, and answers with what it held
    the same request again                     -> the same answer again; nothing moves
    the sender knows something else            -> it is told so, and begins again with the whole shard
    this peer is asking that region itself     -> of the two requests one is answered: that to the region whose label sorts last
    it would move this side further than is likely -> both move less, by the same
    a copy that cannot be of the same run      -> refused, and reported

Whatever is refused has moved nothing.
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import SyncReply, SyncRequest, Unknown
from legion_p2p.errors import CodecError, DecodeError, NetworkError, RemoteProtocolError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.copies import CenterCopy, Copy
from legion_p2p.services.inter_region.pairs import CENTER, PairState
from legion_p2p.services.inter_region.sync_parts import SyncParts
from legion_p2p.services.inter_region.sync_schedule import WHOLE
from legion_p2p.services.inter_region.synced import SyncedShard
from legion_p2p.services.membership.service import MemberService
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.sync_step import ElasticStep, check_plausible, hear, move, reach, tell

STALE = 8  # times the versions between two syncs: a center that nobody synced with for longer would draw all back to what was


class SyncResponder:
    """Takes part in syncs that others begin, as the representative of a region or as the owner of a center variable."""

    def __init__(self, ctx: PeerContext, members: MemberService, parts: SyncParts) -> None:
        self._rounds = parts.shards.rounds
        self._members = members
        self._parts = parts
        self._shards = parts.shards
        self._schedule = parts.schedule
        self._centers: dict[int, CenterCopy] = {}

    async def on_request(self, peer: PeerId, message: SyncRequest) -> SyncReply | Unknown:
        """Sync a shard with another region. Raises: LegionError, to be sent back; then nothing has moved."""
        replica = self._shards.replica(message.shard)
        mine = CENTER if message.center else self._shards.region
        self._check(peer, message, mine)
        pair = self._parts.pairs.get(message.shard, mine, message.region)
        if pair.answered is not None and pair.answered[0] == message.exchange:
            return pair.answered[1]
        if not message.center and self._schedule.is_too_early(replica, message.region):
            raise NetworkError(f"shard {message.shard}: regions {mine} and {message.region} have synced just before")
        if pair.is_asking and mine < message.region:
            raise NetworkError(f"shard {message.shard}: this peer is just asking region {message.region} itself")
        codec = self._shards.codec_of(replica.shard, message.codec)
        copy = await self._copy_for(replica, message)
        pair = self._parts.pairs.get(message.shard, mine, message.region)  # a center that begins again has new ones
        async with copy.lock:
            if pair.answered is not None and pair.answered[0] == message.exchange:  # it came again while the first waited here
                return pair.answered[1]
            if message.known != pair.digest:
                if message.known:
                    return Unknown()
                pair.forget()
            pair.asked = None  # the other side has not moved for it, or it would know something else
            payload, moved = await self._move(replica, copy, pair, message, codec)
            reply = SyncReply(payload, moved.slowed_to)
            pair.answered = (message.exchange, reply)
        self._parts.note(pair, message.region, moved, copy.version, message, len(payload))
        replica.notify.notify()
        return reply

    async def _move(
        self, replica: SyncedShard, copy: Copy, pair: PairState, message: SyncRequest, codec: Codec
    ) -> tuple[bytes, ElasticStep]:
        """Move the copy towards theirs; what the other side is to hear of it. The lock is held."""
        compute, rounds = self._parts.compute, self._rounds
        theirs = await compute(replica, hear, message.payload, pair.known, replica.numel, codec)
        own = copy.value()
        last = self._schedule.last_sync(replica)
        travelled = 0.0 if message.center else await compute(replica, last.travel.distance, own, copy.version)
        await compute(replica, check_plausible, theirs, own, travelled)
        if isinstance(copy, CenterCopy):
            longest = await compute(replica, copy.reach, message.region, theirs, message.rate, rounds.sync_reach)
        else:
            longest = await compute(replica, reach, own, travelled, rounds.sync_reach, rounds.sync_rule)
        limit = min((x for x in (longest, message.limit) if x is not None), default=None)
        payload, ours = await compute(replica, tell, own, pair.known, codec)
        first = (CENTER if message.center else self._shards.region) < message.region
        moved = await compute(replica, move, ours, theirs, pair.known, rounds.sync_rule, message.rate, first, limit)
        if not copy.is_ours:
            raise NetworkError(f"shard {message.shard} is no longer owned by this peer")
        copy.subtract(moved.step_N)
        if not message.center:
            await compute(replica, last.travel.left, own, own - moved.step_N, copy.version)
            last.times.synced(message.region, copy.version, trio.current_time())
        return payload, moved

    def _check(self, peer: PeerId, message: SyncRequest, mine: str) -> None:
        if not self._members.roster.is_known(peer) and not self._schedule.is_hidden(message.region):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")
        if message.center != (self._rounds.sync_rule == "center"):
            raise DecodeError(f"regions of this run sync by the rule {self._rounds.sync_rule!r}")
        if message.region == mine:
            raise NetworkError(f"region {mine} does not sync with itself")
        allowed = self._rounds.allowed_sync_codecs() if message.known else (WHOLE,)
        if message.codec not in allowed:
            raise CodecError(f"a sync in codec {message.codec!r}, this run allows {', '.join(allowed)}, and {WHOLE} at first")
        if not self._schedule.may_represent(peer, message.region, message.shard):
            raise NetworkError(f"{peer} does not represent shard {message.shard} of region {message.region}, as far as I know")

    async def _copy_for(self, replica: SyncedShard, message: SyncRequest) -> Copy:
        if not message.center:
            own = self._parts.copy_of(replica.shard)
            if own is None:
                raise NetworkError(f"shard {message.shard} of region {self._shards.region} is not represented by this peer")
            return own
        if self._schedule.owner(CENTER, message.shard) != self._shards.me:
            raise NetworkError(f"the center variable of shard {message.shard} is not owned by this peer")
        center, version = self._centers.get(message.shard), replica.version
        if center is not None and abs(version - center.synced_at) > STALE * self._rounds.sync_every:
            del self._centers[message.shard]
            center = None
            self._parts.pairs.forget_center(message.shard)
        if center is None:  # the first region that syncs with the center finds itself there
            codec = self._shards.codec_of(replica.shard, WHOLE)
            if message.known:
                return CenterCopy(self._shards.reference(replica.shard))  # of no use: the sender will be told to begin again
            start = await self._parts.compute(replica, hear, message.payload, None, replica.numel, codec)
            center = self._centers.setdefault(message.shard, CenterCopy(start))
        center.synced_at = version
        return center
