"""Between the owners of a shard in two regions: every K versions they meet, and each moves towards the other.

    due, and matched with a region -> what I hold, compressed  -->  its owner moves, and answers with what it held
    its answer came                -> I move as it did, the other way
    no answer                      -> the same message again at a later version: it counts once
    what one knows the other does not -> both begin anew, with the whole shard
    it would move one of them further than is likely -> both move less, by the same; absurd values are refused, and reported

What a copy moves by goes into the owner's residual, so it reaches the members inside the next ordinary updates, and what counts
as one's copy is the reference less that residual: where all that is on its way has arrived. Nothing here holds up a round.
A relay (core/relays.py) does all this on behalf of the owner, and brings it what the copy moved by
(services/inter_region/relay.py).
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import MAX_NORM, Reply, SyncReply, SyncRequest, Unknown
from legion_p2p.errors import CodecError, DecodeError, NetworkError, NonFiniteError, RefusedError, RemoteProtocolError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.copies import CenterCopy, Copy, RegionCopy, RelayEstimate
from legion_p2p.services.inter_region.links import CENTER, Asked, Link, Links
from legion_p2p.services.inter_region.relay import RelayService
from legion_p2p.services.inter_region.schedule import WHOLE, Schedule
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.shards.follower import TRANSFER_DEADLINE_S
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor.elastic import center_bound, pairwise_bound
from legion_p2p.tensor.meeting import ElasticStep, check_plausible, hear, move, move_at, norm, reach, tell

MAX_STALENESS = 64
STALE = 8  # times the versions between two meetings: a center that nobody met for longer would draw all back to what was
RETRY = 4  # attempts in the time between two meetings: each costs what a meeting does
ROUNDING = 1.001  # of norms, which no two machines add up alike


class RegionSync:
    """Keeps the regions of a run together."""

    def __init__(self, ctx: PeerContext, members: MemberService, shards: ShardService) -> None:
        self._shards = shards
        self._members = members
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._rng = ctx.rng
        self._rounds = shards.spec.round
        self._links = Links(self._rounds.moving_rate)
        self._centers: dict[int, CenterCopy] = {}
        self.schedule = Schedule(shards, members, ctx.messenger, self._links)
        self.relay = RelayService(shards, self.schedule, ctx.events, self._number)
        self.n_met = 0

    async def run_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            for replica in self._shards.replicas.values():
                nursery.start_soon(self._sync_when_due, replica)

    def forget(self) -> None:
        """This peer has moved to another region: what it knew as an owner is no longer its own."""
        self._links.clear()
        self.schedule.clear()
        self.relay.clear()

    async def _sync_when_due(self, replica: Replica) -> None:
        while True:
            copy = self._copy_of(replica)
            if copy is None:
                self.schedule.forget(replica.shard)
            else:
                met = self.schedule.met(replica)
                if met.is_out_of_date(copy.version):
                    await self._compute(replica.numel, met.look, copy.value(), copy.version)
                if (other := self.schedule.due(replica)) is not None:
                    await self._meet(replica, copy, other)
            if not isinstance(copy, RelayEstimate):
                await self.relay.finish(replica)
            elif copy.is_due:
                await self.relay.deliver(replica, self._rounds.cross_codec)
            await replica.notify.wait()

    def _copy_of(self, replica: Replica) -> Copy | None:
        """What this peer speaks for in its region; None: nothing."""
        if replica.round is not None:
            return RegionCopy(replica)
        is_relay = self._members.own().relay and self.schedule.speaker(self._shards.region, replica.shard) == self._shards.me
        return self.relay.copy(replica) if is_relay else None

    def _number(self) -> int:
        return self._rng.getrandbits(62)

    # asking

    async def _meet(self, replica: Replica, copy: Copy, other: str) -> None:
        peer = self.schedule.speaker(other, replica.shard)
        link = self._links.get(replica.shard, self._shards.region, other)
        if peer is None or link.is_asking:
            return
        if link.asked is not None and link.asked.peer != peer:
            link.forget()  # whether the one before has moved nobody can tell
        link.is_asking = True
        every = self.schedule.interval(replica, other).every
        met = self.schedule.met(replica)
        met.every = every if link.known is not None else self._rounds.cross_every
        met.not_before = replica.chain.version + max(1, every // RETRY)
        try:
            reply = await self._ask(replica, copy, link, peer, other)
            if isinstance(reply, Unknown):
                link.forget()
                reply = await self._ask(replica, copy, link, peer, other)
            if isinstance(reply, SyncReply):
                await self._take_answer(replica, copy, link, other, reply)
            elif reply is not None:
                raise DecodeError(f"asked to meet about shard {replica.shard}, got {type(reply).__name__}")
        except RefusedError as refused:  # it has not moved
            link.asked = None
            self._events.emit("cross.refused", shard=replica.shard, region=other, peer=peer, reason=str(refused))
        except (NetworkError, trio.TooSlowError) as failed:
            reason = str(failed) or "no answer in time"
            self._events.emit("cross.failed", shard=replica.shard, region=other, peer=peer, reason=reason)
        except (DecodeError, CodecError, NonFiniteError) as bad:
            link.forget()
            self._messenger.report(peer, f"bad meeting about shard {replica.shard}: {bad}")
            self._events.error("cross.failed", f"shard {replica.shard}: {bad}", peer=peer, region=other)
        finally:
            link.is_asking = False

    async def _ask(self, replica: Replica, copy: Copy, link: Link, peer: PeerId, other: str) -> Reply | None:
        if link.asked is None:
            async with copy.lock:
                if not copy.is_ours:
                    return None
                own, version = copy.value(), copy.version
            codec = self.schedule.interval(replica, other).codec
            payload, ours = await self._compute(replica.numel, tell, own, link.known, self._shards.codec_of(replica, codec))
            travelled = await self._compute(replica.numel, self.schedule.met(replica).travelled, own, version)
            cap, rule = self._rounds.cross_reach, self._rounds.cross_rule
            longest = await self._compute(replica.numel, reach, own, travelled, cap, rule)
            message = SyncRequest(
                run=self._shards.run,
                shard=replica.shard,
                region=self._shards.region,
                exchange=self._number(),
                known=link.digest,
                rate=link.guard.rate(self._bound(link.staleness)),
                limit=None if longest is None else min(longest, MAX_NORM),
                center=other == CENTER,
                codec=codec,
                payload=payload,
            )
            link.asked = Asked(peer, message, link.known, ours, own, travelled, version)
        if peer == self._shards.me:
            return await self.on_request(peer, link.asked.message)
        with self.schedule.measuring(peer, link.asked.message) as measure, trio.fail_after(TRANSFER_DEADLINE_S):
            reply = await self._shards.ask_owner(peer, link.asked.message)
            measure(reply)
        return reply

    async def _take_answer(self, replica: Replica, copy: Copy, link: Link, other: str, reply: SyncReply) -> None:
        asked = link.asked
        if asked is None:
            return
        link.asked = None
        message = asked.message
        async with copy.lock:
            moved = await self._compute(replica.numel, self._read_answer, replica, asked, other, reply)
            if not copy.is_ours:
                self._events.emit("cross.lost", shard=replica.shard, region=other)
                return
            copy.subtract(moved.step_N)
        met = self.schedule.met(replica)
        every = self._rounds.cross_every if link.interval is None else link.interval.every
        link.staleness = min((copy.version - asked.version) // every, MAX_STALENESS)
        await self._compute(replica.numel, met.leave, asked.own, asked.own - moved.step_N, asked.version)
        met.note(other, copy.version, trio.current_time())
        self._note(link, other, moved, copy.version, message, len(reply.payload))
        replica.notify.notify()

    def _read_answer(self, replica: Replica, asked: Asked, other: str, reply: SyncReply) -> ElasticStep:
        message = asked.message
        theirs = hear(reply.payload, asked.known, replica.numel, self._shards.codec_of(replica, message.codec))
        check_plausible(theirs, asked.ours, asked.travelled)
        first = self._shards.region < other
        if reply.slowed_to is None:
            moved = move(asked.ours, theirs, asked.known, self._rounds.cross_rule, message.rate, first)
        else:
            moved = move_at(asked.ours, theirs, min(reply.slowed_to, message.rate), first, slowed=True)
        if message.limit is not None and norm(moved.step_N) > ROUNDING * message.limit:
            raise DecodeError(f"a step of norm {norm(moved.step_N):.3g}, at most {message.limit:.3g} was agreed to")
        return moved

    def _bound(self, staleness: int) -> float:
        """Below which moving rate regions come together."""
        bound = pairwise_bound(staleness)
        if self._rounds.cross_rule == "center":
            n_regions = max(1, len(self.schedule.by_region()))
            bound = min(bound, center_bound(n_regions, 0.0) / n_regions)
        return bound

    # answering

    async def on_request(self, peer: PeerId, message: SyncRequest) -> Reply:
        """Meet the owner of a shard in another region. Raises: LegionError, to be sent back; then nothing has moved."""
        replica = self._shards.replica(message.shard)
        mine = CENTER if message.center else self._shards.region
        self._check(peer, message, mine)
        link = self._links.get(message.shard, mine, message.region)
        if link.answered is not None and link.answered[0] == message.exchange:
            return link.answered[1]
        if not message.center and self.schedule.is_too_early(replica, message.region):
            raise NetworkError(f"shard {message.shard}: regions {mine} and {message.region} have met just before")
        if link.is_asking and mine < message.region:  # of two that ask each other at once, one is answered
            raise NetworkError(f"shard {message.shard}: this peer is just asking region {message.region} itself")
        codec = self._shards.codec_of(replica, message.codec)
        copy = await self._answering(replica, message)
        link = self._links.get(message.shard, mine, message.region)  # a center that begins anew has new ones
        met = self.schedule.met(replica)
        async with copy.lock:
            if message.known != link.digest:
                if message.known:
                    return Unknown()
                link.forget()
            link.asked = None  # the other side has not moved for it, or it would know something else
            theirs = await self._compute(replica.numel, hear, message.payload, link.known, replica.numel, codec)
            own = copy.value()
            travelled = 0.0 if message.center else await self._compute(replica.numel, met.travelled, own, copy.version)
            await self._compute(replica.numel, check_plausible, theirs, own, travelled)
            cap, rule = self._rounds.cross_reach, self._rounds.cross_rule
            if isinstance(copy, CenterCopy):
                longest = await self._compute(replica.numel, copy.reach, message.region, theirs, message.rate, cap)
            else:
                longest = await self._compute(replica.numel, reach, own, travelled, cap, rule)
            limit = min((x for x in (longest, message.limit) if x is not None), default=None)
            payload, ours = await self._compute(replica.numel, tell, own, link.known, codec)
            first = mine < message.region
            moved = await self._compute(replica.numel, move, ours, theirs, link.known, rule, message.rate, first, limit)
            if not copy.is_ours:
                raise NetworkError(f"shard {message.shard} is no longer owned by this peer")
            copy.subtract(moved.step_N)
            reply = SyncReply(payload, moved.slowed_to)
            link.answered = (message.exchange, reply)
            if not message.center:
                await self._compute(replica.numel, met.leave, own, own - moved.step_N, copy.version)
                met.note(message.region, copy.version, trio.current_time())
        self._note(link, message.region, moved, copy.version, message, len(payload))
        replica.notify.notify()
        return reply

    def _check(self, peer: PeerId, message: SyncRequest, mine: str) -> None:
        if not self._members.is_known(peer):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")
        if message.center != (self._rounds.cross_rule == "center"):
            raise DecodeError(f"regions of this run meet by the rule {self._rounds.cross_rule!r}")
        if message.region == mine:
            raise NetworkError(f"region {mine} does not meet itself")
        allowed = self._rounds.allowed_cross_codecs() if message.known else (WHOLE,)
        if message.codec not in allowed:
            raise CodecError(f"meeting in codec {message.codec!r}, this run allows {', '.join(allowed)}, and {WHOLE} at first")
        if not self.schedule.may_speak(peer, message.region, message.shard):
            raise NetworkError(f"{peer} does not speak for shard {message.shard} of region {message.region}, as far as I know")

    async def _answering(self, replica: Replica, message: SyncRequest) -> Copy:
        if not message.center:
            own = self._copy_of(replica)
            if own is None:
                raise NetworkError(f"shard {message.shard} of region {self._shards.region} is not owned by this peer")
            return own
        if self.schedule.owner(CENTER, message.shard) != self._shards.me:
            raise NetworkError(f"the center variable of shard {message.shard} is not owned by this peer")
        center, version = self._centers.get(message.shard), replica.chain.version
        if center is not None and abs(version - center.met_at) > STALE * self._rounds.cross_every:
            del self._centers[message.shard]
            center = None
            self._links.forget_center(message.shard)
        if center is None:  # the first that meets the center finds itself there
            codec = self._shards.codec_of(replica, WHOLE)
            if message.known:
                return CenterCopy(replica.reference)  # of no use: the asker will be told to begin anew
            start = await self._compute(replica.numel, hear, message.payload, None, replica.numel, codec)
            center = self._centers.setdefault(message.shard, CenterCopy(start))
        center.met_at = version
        return center

    # both

    def _note(self, link: Link, other: str, moved: ElasticStep, version: int, message: SyncRequest, replied: int) -> None:
        link.known, link.digest = moved.known, moved.digest
        if link.guard.met(moved.distance):
            link.forget()
            self._events.emit("cross.apart", shard=message.shard, region=other, distance=moved.distance)
        if moved.slowed_to is not None:
            self._events.emit("cross.slowed", shard=message.shard, region=other, rate=moved.slowed_to, distance=moved.distance)
        self.n_met += 1
        self._events.emit(
            "cross.met",
            shard=message.shard,
            version=version,
            region=other,
            distance=round(moved.distance, 6),
            rate=round(message.rate if moved.slowed_to is None else moved.slowed_to, 4),
            codec=message.codec,
            whole=not message.known,
            n_bytes=len(message.payload) + replied,
        )

    async def _compute(self, n_elements: int, fn, *args):  # type: ignore[no-untyped-def]
        return await self._shards.compute(n_elements, fn, *args)
