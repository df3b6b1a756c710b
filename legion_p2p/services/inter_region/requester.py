"""Asking another region for a sync.

what this side holds, compressed   --> the other side moves, and answers with what it held
its answer came                    -> this side moves as the other did, the other way
no answer                          -> the same message again at a later version: it counts once
one side knows what the other does not -> both begin again, with the whole shard
the answer would move this side further than it agreed to -> nothing moves, and the sender is reported
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import MAX_NORM, Message, SyncReply, SyncRequest, Unknown
from legion_p2p.errors import CodecError, DecodeError, NetworkError, NonFiniteError, RefusedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.copies import Copy
from legion_p2p.services.inter_region.pairs import CENTER, OpenRequest, PairState
from legion_p2p.services.inter_region.responder import SyncResponder
from legion_p2p.services.inter_region.sync_parts import SyncParts
from legion_p2p.services.inter_region.synced import SyncedShard
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S
from legion_p2p.tensor.elastic import center_bound, pairwise_bound
from legion_p2p.tensor.sync_step import ElasticStep, check_plausible, hear, move, move_at, norm, reach, tell

MAX_STALENESS = 64  # intervals between two syncs: beyond it the bound on the moving rate is as good as zero
ROUNDING = 1.001  # of norms, which no two machines add up alike


class SyncRequester:
    """Begins syncs and takes their answers."""

    def __init__(self, ctx: PeerContext, parts: SyncParts, responder: SyncResponder) -> None:
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._rounds = parts.shards.rounds
        self._parts = parts
        self._shards = parts.shards
        self._schedule = parts.schedule
        self._responder = responder

    async def sync(self, replica: SyncedShard, copy: Copy, other: str) -> None:
        """Sync `copy`, which this peer represents, with region `other`. What goes wrong is noted, and tried again later."""
        peer = self._schedule.representative(other, replica.shard)
        pair = self._parts.pairs.get(replica.shard, self._shards.region, other)
        if peer is None or pair.is_asking:
            return
        if pair.asked is not None and pair.asked.peer != peer:
            pair.forget()  # nobody can tell whether the representative before this one has moved
        pair.is_asking = True
        every = self._schedule.interval(replica, other).every
        last = self._schedule.last_sync(replica)
        last.travel.every = every if pair.known is not None else self._rounds.sync_every
        last.times.attempted(replica.version, every)
        try:
            reply = await self._ask(replica, copy, pair, peer, other)
            if isinstance(reply, Unknown):
                pair.forget()
                reply = await self._ask(replica, copy, pair, peer, other)
            if isinstance(reply, SyncReply):
                await self._take_answer(replica, copy, pair, other, reply)
            elif reply is not None:
                raise DecodeError(f"asked for a sync of shard {replica.shard}, got {type(reply).__name__}")
        except RefusedError as refused:  # it has not moved
            pair.asked = None
            self._events.emit("sync.refused", shard=replica.shard, region=other, peer=peer, reason=str(refused))
        except (NetworkError, trio.TooSlowError) as failed:
            reason = str(failed) or "no answer in time"
            self._events.emit("sync.failed", shard=replica.shard, region=other, peer=peer, reason=reason)
        except (DecodeError, CodecError, NonFiniteError) as bad:
            pair.forget()
            self._messenger.report(peer, f"bad sync of shard {replica.shard}: {bad}")
            self._events.error("sync.failed", f"shard {replica.shard}: {bad}", peer=peer, region=other)
        finally:
            pair.is_asking = False

    async def _ask(self, replica: SyncedShard, copy: Copy, pair: PairState, peer: PeerId, other: str) -> Message | None:
        """The answer of `peer`; None, if this peer does not represent the copy any more."""
        if pair.asked is None:
            pair.asked = await self._request(replica, copy, pair, peer, other)
        asked = pair.asked
        if asked is None:
            return None
        if peer == self._shards.me:
            return await self._responder.on_request(peer, asked.message)
        with self._schedule.measuring(peer, asked.message) as measure, trio.fail_after(TRANSFER_DEADLINE_S):
            reply = await self._shards.ask_owner(peer, asked.message)
            measure(reply)
        return reply

    async def _request(self, replica: SyncedShard, copy: Copy, pair: PairState, peer: PeerId, other: str) -> OpenRequest | None:
        async with copy.lock:
            if not copy.is_ours:
                return None
            own, version = copy.value(), copy.version
        compute, rounds = self._parts.compute, self._rounds
        codec = self._schedule.interval(replica, other).codec
        payload, ours = await compute(replica, tell, own, pair.known, self._shards.codec_of(replica.shard, codec))
        travelled = await compute(replica, self._schedule.last_sync(replica).travel.distance, own, version)
        longest = await compute(replica, reach, own, travelled, rounds.sync_reach, rounds.sync_rule)
        message = SyncRequest(
            run=self._shards.run,
            shard=replica.shard,
            region=self._shards.region,
            exchange=self._parts.number(),
            known=pair.digest,
            rate=pair.guard.rate(self._bound(pair.staleness)),
            limit=None if longest is None else min(longest, MAX_NORM),
            center=other == CENTER,
            codec=codec,
            payload=payload,
        )
        return OpenRequest(peer, message, pair.known, ours, own, travelled, version)

    async def _take_answer(self, replica: SyncedShard, copy: Copy, pair: PairState, other: str, reply: SyncReply) -> None:
        asked = pair.asked
        if asked is None:
            return
        pair.asked = None
        async with copy.lock:
            moved = await self._parts.compute(replica, self._read_answer, replica, asked, other, reply)
            if not copy.is_ours:
                self._events.emit("sync.lost", shard=replica.shard, region=other)
                return
            copy.subtract(moved.step_N)
        last = self._schedule.last_sync(replica)
        every = self._rounds.sync_every if pair.interval is None else pair.interval.every
        pair.staleness = min((copy.version - asked.version) // every, MAX_STALENESS)
        await self._parts.compute(replica, last.travel.left, asked.own, asked.own - moved.step_N, asked.version)
        last.times.synced(other, copy.version, trio.current_time())
        self._parts.note(pair, other, moved, copy.version, asked.message, len(reply.payload))
        replica.notify.notify()

    def _read_answer(self, replica: SyncedShard, asked: OpenRequest, other: str, reply: SyncReply) -> ElasticStep:
        """The step of this side. Raises: DecodeError, CodecError, NonFiniteError."""
        message = asked.message
        theirs = hear(reply.payload, asked.known, replica.numel, self._shards.codec_of(replica.shard, message.codec))
        check_plausible(theirs, asked.ours, asked.travelled)
        first = self._shards.region < other
        if reply.slowed_to is None:
            moved = move(asked.ours, theirs, asked.known, self._rounds.sync_rule, message.rate, first)
        else:
            moved = move_at(asked.ours, theirs, min(reply.slowed_to, message.rate), first, slowed=True)
        if message.limit is not None and norm(moved.step_N) > ROUNDING * message.limit:
            raise DecodeError(f"a step of norm {norm(moved.step_N):.3g}, at most {message.limit:.3g} was agreed to")
        return moved

    def _bound(self, staleness: int) -> float:
        """Below which moving rate regions come together."""
        bound = pairwise_bound(staleness)
        if self._rounds.sync_rule == "center":
            n_regions = max(1, len(self._schedule.by_region()))
            bound = min(bound, center_bound(n_regions, 0.0) / n_regions)
        return bound
