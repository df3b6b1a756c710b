"""Between an owner and its members: collecting pushes, closing rounds, publishing updates, taking over."""

import math

import trio
from torch import Tensor

from legion_p2p.core.announcement import unpack_marks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.priority import Priority
from legion_p2p.core.round import Contribution, ShardRound, Verdict
from legion_p2p.core.wire import (
    MAX_COUNT,
    MAX_INCLUDED,
    Failure,
    Held,
    Inclusion,
    NotOwner,
    Push,
    Pushed,
    Reply,
    Update,
    UpdateHeader,
    encode,
)
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    NetworkError,
)
from legion_p2p.services.shards.follower import TRANSFER_DEADLINE_S
from legion_p2p.services.shards.handover import HandingOver
from legion_p2p.services.shards.replica import Replica, combine

MAX_UPDATES_IN_FLIGHT = 8  # to one member and shard; who is further behind fetches by itself
LAST_WORDS_S = 2.0  # to collect what a dead owner published last, before going on from it
MAX_WITNESSES = 16  # members asked for that
MAX_AHEAD = 4  # of them, that say they have it: they get the time that sending it takes
MAX_FAILED_NAMED = 256  # in one update: its header has room for thousands, and a liar can invent any number of members


class Owning(HandingOver):
    """Owns the shards that rendezvous gives to this peer."""

    async def _keep(self, replica: Replica) -> None:
        """Own it while it is ours, follow while it is not."""
        while True:
            await self._settle_ownership(replica)
            if replica.sync_from is not None:  # before closing a round: its result should follow what others hold already
                ahead, replica.sync_from = replica.sync_from, None
                await self._sync(replica, ahead)
            elif replica.round is not None and replica.round.ready(trio.current_time()):
                await self._close(replica)
            else:
                closes = None if replica.round is None else replica.round.next_deadline()
                with trio.move_on_at(math.inf if closes is None else closes):
                    await replica.notify.wait()

    async def _settle_ownership(self, replica: Replica) -> None:
        owner = self.ownership(replica.shard).owner
        if owner == self.me and replica.round is None:
            before = replica.chain.owner
            if before is not None and before != self.me and self._lives(before):
                # Its view may lag behind ours: our announcement tells it to stop, and then its word is the last one.
                await self._members.exchange_with(before)
                await self._sync_patiently(replica, before)
            elif before is not None and before != self.me:
                await self._gather_last_words(replica)
            await self._catch_up_with_former(replica)
            if self.ownership(replica.shard).owner != self.me:
                return
            newest = {PeerId(i.peer): i.seq for i in replica.chain.included()}
            shard_round = ShardRound(self._config, replica.chain.version, newest, replica.pace)
            replica.round, replica.owned_from = shard_round, replica.chain.version
            self._events.emit("shard.owned", shard=replica.shard, version=replica.chain.version)
            self._look_for_news()
        elif owner != self.me and replica.round is not None:
            await self._relinquish(replica)
        if replica.round is not None:
            replica.round.expect(self._expected(), trio.current_time())

    async def _catch_up_with_former(self, replica: Replica) -> None:
        """Who stands by now owned the shard before this peer came, which may have been behind, and have it from elsewhere."""
        former = self.ownership(replica.shard).standby
        if former is None or not self._is_said_to_be_ahead(replica, former):
            return
        if former != replica.chain.owner:
            await self._members.exchange_with(former)
        await self._sync_patiently(replica, former, trusted=True)

    def _is_said_to_be_ahead(self, replica: Replica, peer: PeerId) -> bool:
        announced = self._members.announced(peer)
        marks = () if announced is None or not announced.ready else unpack_marks(announced.marks)
        return len(marks) == self.plan.n_shards and marks[replica.shard].version > replica.chain.version

    async def own_nothing(self) -> None:
        """Until every round that this peer kept is closed for good: its members know it as not ready, so it owns nothing."""
        while any(replica.round is not None for replica in self.replicas.values()):
            await self._settled.wait()

    async def _gather_last_words(self, replica: Replica) -> None:
        """The owner before us is dead. What it published last may have reached others only."""
        others = [m.peer_id for m in self._members.in_region() if m.announcement.ready]
        ahead = [peer for peer in others if self._is_said_to_be_ahead(replica, peer)]
        ahead = self._rng.sample(ahead, min(MAX_AHEAD, len(ahead)))
        rest = [peer for peer in others if peer not in ahead]  # who has it may not have said so yet
        update_bytes = self.codec_of(replica, self.update_codec).bits_per_element * replica.numel / 8
        update_s = LAST_WORDS_S + TRANSFER_DEADLINE_S * update_bytes / (4 * MAX_SHARD_ELEMENTS)
        async with trio.open_nursery() as nursery:
            for peer in ahead:
                nursery.start_soon(self._hear_last_words, replica, peer, update_s)
            for peer in self._rng.sample(rest, min(MAX_WITNESSES - len(ahead), len(rest))):
                nursery.start_soon(self._hear_last_words, replica, peer, LAST_WORDS_S)

    async def _hear_last_words(self, replica: Replica, witness: PeerId, within_s: float) -> None:
        with trio.move_on_after(within_s):
            await self._sync_patiently(replica, witness, log_only=True, within_s=within_s)

    def _expected(self) -> list[PeerId]:
        return [PeerId(a.peer_id) for a in self._members.everyone() if a.training and a.region == self.region]

    async def _on_push(self, peer: PeerId, message: Push) -> Reply:
        replica = self.replica(message.shard)
        self._must_be_member(peer)
        if message.codec not in self.spec.round.allowed_push_codecs():
            allowed = ", ".join(self.spec.round.allowed_push_codecs())
            raise CodecError(f"push of {peer} in codec {message.codec!r}, this run allows {allowed}")
        if not replica.chain.is_plausible(peer, message.seq):
            raise DecodeError(f"contribution number {message.seq} of {peer}, which has made far fewer")
        if replica.chain.includes(peer, message.seq):
            return Pushed(replica.chain.version, True)
        if replica.round is None:
            return self._not_owner(replica)
        decode = self.codec_of(replica, message.codec).decode
        try:
            value = await self.compute(replica.numel, decode, message.payload, replica.numel)
        except CodecError as bad:
            raise CodecError(f"push of {peer}: {bad}") from bad
        async with replica.lock:
            if replica.round is None:
                return self._not_owner(replica)
            verdict = self._enter(replica, peer, message.seq, message.version, message.tokens, value, message.codec)
        if message.version > replica.chain.version:
            self._follow(replica, peer)
        replica.notify.notify()
        return Pushed(replica.chain.version, verdict is Verdict.INCLUDED)

    def _enter(
        self, replica: Replica, peer: PeerId, seq: int, version: int, tokens: int, value: Tensor, codec_name: str
    ) -> Verdict:
        assert replica.round is not None
        now = trio.current_time()
        verdict = replica.round.push(Contribution(peer, seq, version, tokens, now), now)
        if verdict is Verdict.ACCEPTED:
            replica.arrived[peer] = value
            replica.warming_up |= codec_name == self.spec.round.warmup_codec
        return verdict

    def _not_owner(self, replica: Replica) -> NotOwner:
        owner = self.ownership(replica.shard).owner
        signed = None if owner is None else self._members.signed_of(owner)
        if owner is None or signed is None or owner == self.me:
            raise NetworkError(f"shard {replica.shard} has no owner that I know of at the moment")
        return NotOwner(owner, signed)

    async def _close(self, replica: Replica) -> None:
        async with replica.lock:
            shard_round = replica.round
            if shard_round is None or not shard_round.ready(trio.current_time()):
                return
            closed = shard_round.close(trio.current_time())
            values = {c.peer: replica.arrived.pop(c.peer) for c in closed.contributions}
            name = self.spec.round.warmup_codec if replica.warming_up else self.update_codec
            replica.warming_up = False
            result = await self.compute(
                replica.numel * len(values),
                combine,
                replica.reference,
                replica.owner_residual,
                replica.outer,
                closed,
                values,
                self.spec.round,
                self.codec_of(replica, name),
            )
            refused = tuple(Failure(peer, reason[:200]) for peer, reason in result.refused)
            used = tuple(Inclusion(c.peer, c.seq) for c in closed.contributions if c.peer in result.used)
            header = UpdateHeader(
                self.run,
                replica.shard,
                replica.chain.version + 1,
                replica.chain.digest,
                result.digest or replica.chain.digest,
                self.me,
                name,
                used,
                (refused + closed.failed)[:MAX_FAILED_NAMED],
                min(closed.expected, MAX_INCLUDED),
                min(sum(c.tokens for c in closed.contributions if c.peer in result.used), MAX_COUNT),
            )
            replica.owner_residual, replica.outer = result.owner_residual, result.outer
            if result.payload is None:
                self._note_round(header, replica.chain.version)
                self._settle_failed(replica, "the owner found it unusable")
                return
            raw = encode(header)
            update = Update(raw, self._identity.sign(raw), result.payload)
            replica.made_tokens += header.tokens
            self._accept(replica, header, update, result.reference)
        self._note_round(header, header.version)
        self._publish(replica, update, header)

    def _publish(self, replica: Replica, update: Update, header: UpdateHeader) -> None:
        if self._nursery is None:
            return
        members = self._members_here()
        first = replica.chain.first(members)
        replica.held = {peer: replica.held[peer] for peer in members if peer in replica.held}
        for peer in members:
            if peer == self.me or self._in_flight[peer, replica.shard] >= (MAX_UPDATES_IN_FLIGHT if peer in first else 1):
                continue
            if peer in first or replica.held.get(peer, header.version) >= header.version - 1:
                self._in_flight[peer, replica.shard] += 1
                priority = Priority.ROUND if peer in first else Priority.CATCH_UP
                self._nursery.start_soon(self._deliver, replica, peer, update, header, priority)

    async def _deliver(self, replica: Replica, peer: PeerId, update: Update, header: UpdateHeader, priority: Priority) -> None:
        try:
            with trio.fail_after(TRANSFER_DEADLINE_S):
                reply = await self._ask(peer, update, priority)
            if isinstance(reply, Held):
                replica.held[peer] = reply.version
        except (NetworkError, DecodeError, trio.TooSlowError):
            # It learns from announcements that it is behind, and fetches.
            self._events.emit("update.undelivered", shard=header.shard, version=header.version, peer=peer)
        finally:
            self._in_flight[peer, header.shard] -= 1
            if not self._in_flight[peer, header.shard]:
                del self._in_flight[peer, header.shard]
                self._settled.notify()
