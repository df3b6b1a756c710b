"""The life of the shards at one peer: pushing, owning, following, catching up.

Two tasks per shard look at what there is to do, do it, and wait for the bell. One keeps the shard:

    ownership changed      -> take over (after asking the owner before us for its last word), or hand over
    somebody is ahead      -> fetch the updates in between, or the whole shard
    the round is complete  -> combine it, publish the update

The other brings this peer's own changes to the owner:

    a change was offered   -> compress it into a push; alone in the run: it simply becomes the next version
    a push is pending      -> send it, again whenever it may have been lost

The invariants of docs/ARCHITECTURE.md are kept here and tested in tests/sim.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import trio
from torch import Tensor

from legion_p2p.core.announcement import Mark, pack_marks, unpack_marks
from legion_p2p.core.chain import Chain, Step
from legion_p2p.core.identity import Identity, PeerId, verify
from legion_p2p.core.membership import Liveness
from legion_p2p.core.rendezvous import Ownership, ownership
from legion_p2p.core.round import LATE, Contribution, RoundConfig, ShardRound, Verdict
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import (
    MAX_COUNT,
    MAX_INCLUDED,
    Failure,
    GetShard,
    GetUpdates,
    Handover,
    Held,
    Inclusion,
    NotOwner,
    Push,
    Pushed,
    Reply,
    Request,
    ShardState,
    Update,
    UpdateHeader,
    Updates,
    decode_header,
    decode_reply,
    encode,
)
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    MisfitError,
    NetworkError,
    NonFiniteError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
)
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import FailedPush, RoundStatus
from legion_p2p.services.bell import Bell
from legion_p2p.services.mailbox import Mailbox
from legion_p2p.services.members import MemberService
from legion_p2p.services.ports import Lane, Messenger, Offload
from legion_p2p.services.replica import LocalChange, Pending, Replica, advance, combine, pack, rebase
from legion_p2p.tensor import codec
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.flatten import digest

TRANSFER_DEADLINE_S = 120.0  # one shard is at most 32 MiB: 2.2 Mbit/s suffice
RETRY_S = 1.0  # between attempts to reach an owner that does not answer; its death is decided by membership
MAX_UPDATES_IN_FLIGHT = 8  # to one member and shard; who is further behind fetches by itself
MAX_CONCURRENT_TRANSFERS = 32  # each holds at most one shard in memory
LAST_WORDS_S = 2.0  # to collect what a dead owner published last, before going on from it
MAX_WITNESSES = 16  # members asked for that
CLAIM_DEADLINE_S = 2.0  # for a member that only says it is ahead to prove it: meanwhile the round waits
MAX_CLAIM_PAUSE_S = 60.0  # between two looks at what a member claims whose claims come to nothing
MAX_CLAIMS = 4096  # such pairs of member and shard that are remembered
MAX_VERSION_JUMP = 1 << 24  # half a year of a version a second: who claims more would soon have used up all numbers
MAX_FAILED_NAMED = 256  # in one update: its header has room for thousands, and a liar can invent any number of members
SETTLE_S = 0.05  # membership news of this long are looked at together
RESEND_AFTER_VERSIONS = 3  # an owner that made this many versions without our push has lost it
MAX_LOG_BYTES = 60 << 20  # of updates of one shard: they travel in one frame of 64 MiB
INLINE_ELEMENTS = 1 << 15  # below this, arithmetic is quicker than a hop to another thread


def _log_bytes(numel: int) -> int:
    """How many bytes of updates to keep: twice the shard, for who needs more fetches it whole; and room for headers."""
    return min(8 * numel + (64 << 10), MAX_LOG_BYTES)


class ShardService:
    """All shards of a run at one peer."""

    def __init__(
        self,
        run: str,
        spec: RunSpec,
        identity: Identity,
        messenger: Messenger,
        offload: Offload,
        members: MemberService,
        mailbox: Mailbox,
        events: Events,
        rng: random.Random,
        config: RoundConfig,
        region: str,
    ) -> None:
        self.run = run
        self.spec = spec
        self.plan = spec.plan()
        self.me = identity.peer_id
        self.region = region
        self.replicas: dict[int, Replica] = {}
        self.rounds = 0
        self.last_round: RoundStatus | None = None
        self._identity = identity
        self._messenger = messenger
        self._offload = offload
        self._members = members
        self._mailbox = mailbox
        self._events = events
        self._rng = rng
        self._config = config
        self._transfers = trio.CapacityLimiter(MAX_CONCURRENT_TRANSFERS)
        self._in_flight: Counter[tuple[PeerId, int]] = Counter()
        self._nursery: trio.Nursery | None = None
        self._settled = Bell()
        self._owners: dict[int, Ownership] = {}
        self._weights: dict[PeerId, float] = {}
        self._fruitless: dict[tuple[PeerId, int], tuple[float, float]] = {}  # not to be asked before; the pause until then

    # what is known

    def hold(self, shard: int, reference: Tensor, version: int, digest_: bytes, included: Sequence[Inclusion] = ()) -> None:
        """Begin to hold a shard in this state."""
        chain = Chain(version, digest_, _log_bytes(reference.numel()), included)
        replica = Replica(shard, reference, chain)
        replica.next_seq = 1 + chain.newest(self.me)
        self.replicas[shard] = replica
        self._mailbox.post(shard, version, reference)

    def complete(self) -> bool:
        """This peer holds every shard."""
        return len(self.replicas) == self.plan.n_shards

    def marks(self) -> bytes:
        """The packed marks of all shards, for the announcement; empty while some are missing."""
        if not self.complete():
            return b""
        return pack_marks([self.replicas[shard].chain.mark for shard in range(self.plan.n_shards)])

    def ownership(self, shard: int) -> Ownership:
        """Owner and standby in this region, by the members known now."""
        found = self._owners.get(shard)
        if found is None:
            found = self._owners[shard] = ownership(self.run, self.region, shard, self._weights)
        return found

    def owned(self) -> list[int]:
        """The shards that this peer owns."""
        return [shard for shard in self.replicas if self.ownership(shard).owner == self.me]

    # what the training thread hands in

    def contribute(self, change: LocalChange) -> None:
        """A local change to push. Its shard must have been settled since the last one."""
        replica = self.replicas[change.shard]
        replica.offered = change
        replica.bell.ring()

    # what others send

    async def on_request(self, peer: PeerId, message: Request) -> Reply:
        """Answer a request about a shard. Raises: LegionError, to be sent back."""
        if isinstance(message, Push):
            return await self._on_push(peer, message)
        if isinstance(message, Update):
            return await self._on_update(peer, message)
        if isinstance(message, GetUpdates):
            return await self._on_get_updates(message)
        if isinstance(message, GetShard):
            return await self._on_get_shard(message)
        if isinstance(message, Handover):
            return await self._on_handover(peer, message)
        raise DecodeError(f"{type(message).__name__} is not about a shard")

    def on_members_changed(self) -> None:
        """Somebody came, went, or announced news: owners may differ, and somebody may be ahead of us."""
        weights = {
            PeerId(a.peer_id): a.weight for a in self._members.everyone() if a.ready and a.weight > 0 and a.region == self.region
        }
        owners_may_differ = weights != self._weights
        if owners_may_differ:
            self._weights = weights
            self._owners.clear()
        self._look_for_news()
        for replica in self.replicas.values():
            if owners_may_differ or replica.round is not None:
                replica.bell.ring()

    async def run_forever(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.on_members_changed()
                for replica in self.replicas.values():
                    nursery.start_soon(self._keep, replica)
                    nursery.start_soon(self._push, replica)
                task_status.started()
                while True:
                    await self._members.changed.wait()
                    await trio.sleep(SETTLE_S)
                    self.on_members_changed()
            finally:
                self._nursery = None

    async def own_nothing(self) -> None:
        """Until every round that this peer kept is closed for good: its members know it as not ready, so it owns nothing."""
        while any(replica.round is not None for replica in self.replicas.values()):
            await self._settled.wait()

    async def hand_over_all(self, deadline_s: float) -> None:
        """Before leaving: give away what only an owner has."""
        self.on_members_changed()
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                for shard, replica in self.replicas.items():
                    heir = self.ownership(shard).standby
                    if replica.round is not None and heir is not None:
                        nursery.start_soon(self._hand_over, replica, heir)
            while self._in_flight:  # the last updates: nobody else could deliver them
                await self._settled.wait()

    # the life of one shard

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
                    await replica.bell.wait()

    async def _push(self, replica: Replica) -> None:
        """Bring this peer's own changes to the owner. A task of its own: a slow transfer holds up nothing else."""
        while True:
            if replica.offered is not None and replica.pending is None:
                await self._prepare(replica, replica.offered)
            elif self._should_send(replica, trio.current_time()):
                await self._send(replica)
                replica.bell.ring()
            else:
                pending = replica.pending
                waits_for_time = pending is not None and pending.holder is None
                with trio.move_on_at(pending.not_before if pending is not None and waits_for_time else math.inf):
                    await replica.bell.wait()

    # owning

    async def _settle_ownership(self, replica: Replica) -> None:
        owner = self.ownership(replica.shard).owner
        if owner == self.me and replica.round is None:
            before = replica.chain.owner
            if before is not None and before != self.me and self._lives(before):
                # Its view may lag behind ours: our announcement tells it to stop, and then its word is the last one.
                await self._members.exchange_with(before)
                await self._sync(replica, before)
            elif before is not None and before != self.me:
                await self._gather_last_words(replica)
            if self.ownership(replica.shard).owner != self.me:
                return
            shard_round = ShardRound(
                self._config, replica.chain.version, {PeerId(i.peer): i.seq for i in replica.chain.included()}
            )
            replica.round = shard_round
            self._events.emit("shard.owned", shard=replica.shard, version=replica.chain.version)
            self._look_for_news()
        elif owner != self.me and replica.round is not None:
            async with replica.lock:
                replica.round = None
                replica.arrived.clear()
            self._settled.ring()
            self._events.emit("shard.handed_over", shard=replica.shard, version=replica.chain.version, owner=owner)
            if replica.pending is not None:
                replica.pending.holder = None
            if owner is not None:
                await self._hand_over(replica, owner)
        if replica.round is not None:
            replica.round.expect(self._expected(), trio.current_time())

    async def _gather_last_words(self, replica: Replica) -> None:
        """The owner before us is dead. What it published last may have reached others only."""
        others = [m.peer_id for m in self._members.table.counted() if m.announcement.ready]
        with trio.move_on_after(LAST_WORDS_S):
            async with trio.open_nursery() as nursery:
                for peer in self._rng.sample(others, min(MAX_WITNESSES, len(others))):
                    nursery.start_soon(partial(self._sync, replica, peer, log_only=True))

    def _expected(self) -> list[PeerId]:
        return [PeerId(a.peer_id) for a in self._members.everyone() if a.training and a.region == self.region]

    async def _hand_over(self, replica: Replica, heir: PeerId) -> None:
        async with replica.lock:
            residual, replica.owner_residual = replica.owner_residual, None
            version, digest_ = replica.chain.version, replica.chain.digest
        if residual is None or not bool(residual.any()):
            return
        try:
            payload = codec.get("fp32").encode(residual)
            message = Handover(self.run, replica.shard, version, digest_, payload)
            with trio.fail_after(TRANSFER_DEADLINE_S):
                await self._ask(heir, message, Lane.BULK)
        except (NetworkError, DecodeError, trio.TooSlowError) as failed:
            async with replica.lock:  # not lost: it goes with this peer's own next push instead
                kept = replica.residual
                replica.residual = residual if kept is None else kept + residual
            self._events.emit("shard.handover_failed", shard=replica.shard, owner=heir, reason=str(failed))

    async def _on_handover(self, peer: PeerId, message: Handover) -> Held:
        replica = self._replica(message.shard)
        self._must_be_member(peer)
        if message.digest not in (replica.chain.digest, *(m.base_digest for m in self._last_header(replica))):
            self._events.emit("shard.handover_of_other_state", shard=replica.shard, peer=peer)
        if not replica.chain.was_made_by(peer):
            raise NetworkError(f"shard {replica.shard}: {peer} made none of its last versions, so it has nothing to hand over")
        residual = codec.get("fp32").decode(message.payload, replica.numel)
        async with replica.lock:
            kept = replica.owner_residual
            together = residual if kept is None else kept + residual
            if not is_finite(together):
                raise CodecError("the residual leads to infinity")
            replica.owner_residual = together
        return Held(replica.chain.version, replica.chain.digest)

    @staticmethod
    def _last_header(replica: Replica) -> tuple[UpdateHeader, ...]:
        last = replica.chain.last()
        return () if last is None else (last.header,)

    async def _on_push(self, peer: PeerId, message: Push) -> Reply:
        replica = self._replica(message.shard)
        self._must_be_member(peer)
        if message.codec != self.spec.round.push_codec:
            raise CodecError(f"push in codec {message.codec!r}, this run uses {self.spec.round.push_codec!r}")
        if not replica.chain.is_plausible(peer, message.seq):
            raise DecodeError(f"contribution number {message.seq} of {peer}, which has made far fewer")
        if replica.chain.includes(peer, message.seq):
            return Pushed(replica.chain.version, True)
        if replica.round is None:
            return self._not_owner(replica)
        value = await self._compute(replica.numel, codec.get(message.codec).decode, message.payload, replica.numel)
        async with replica.lock:
            if replica.round is None:
                return self._not_owner(replica)
            verdict = self._enter(replica, peer, message.seq, message.version, message.tokens, value)
        if message.version > replica.chain.version:
            self._follow(replica, peer)
        replica.bell.ring()
        return Pushed(replica.chain.version, verdict is Verdict.INCLUDED)

    def _enter(self, replica: Replica, peer: PeerId, seq: int, version: int, tokens: int, value: Tensor) -> Verdict:
        assert replica.round is not None
        now = trio.current_time()
        verdict = replica.round.push(Contribution(peer, seq, version, tokens, now), now)
        if verdict is Verdict.ACCEPTED:
            replica.arrived[peer] = value
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
            result = await self._compute(
                replica.numel * len(values), combine, replica.reference, replica.owner_residual, closed, values, self.spec.round
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
                self.spec.round.update_codec,
                used,
                (refused + closed.failed)[:MAX_FAILED_NAMED],
                min(closed.expected, MAX_INCLUDED),
                min(sum(c.tokens for c in closed.contributions if c.peer in result.used), MAX_COUNT),
            )
            if result.payload is None:
                self._note_round(header, replica.chain.version)
                replica.owner_residual = result.owner_residual
                self._settle_failed(replica, "the owner found it unusable")
                return
            raw = encode(header)
            update = Update(raw, self._identity.sign(raw), result.payload)
            replica.owner_residual = result.owner_residual
            replica.made_tokens += header.tokens
            self._accept(replica, header, update, result.reference)
        self._note_round(header, header.version)
        self._publish(replica, update, header)

    def _publish(self, replica: Replica, update: Update, header: UpdateHeader) -> None:
        if self._nursery is None:
            return
        for announcement in self._members.everyone():
            peer = PeerId(announcement.peer_id)
            if peer == self.me or announcement.region != self.region or not announcement.ready:
                continue
            if self._in_flight[peer, replica.shard] < MAX_UPDATES_IN_FLIGHT:
                self._in_flight[peer, replica.shard] += 1
                self._nursery.start_soon(self._deliver, peer, update, header)

    async def _deliver(self, peer: PeerId, update: Update, header: UpdateHeader) -> None:
        try:
            with trio.fail_after(TRANSFER_DEADLINE_S):
                await self._ask(peer, update, Lane.BULK)
        except (NetworkError, DecodeError, trio.TooSlowError):
            # It learns from announcements that it is behind, and fetches.
            self._events.emit("update.undelivered", shard=header.shard, version=header.version, peer=peer)
        finally:
            self._in_flight[peer, header.shard] -= 1
            if not self._in_flight[peer, header.shard]:
                del self._in_flight[peer, header.shard]
                self._settled.ring()

    # pushing

    async def _prepare(self, replica: Replica, change: LocalChange) -> None:
        if self._members.alone() and change.version == replica.chain.version:
            await self._rebase(replica, change)
            return
        async with replica.lock:
            replica.offered = None
            try:
                payload, sent, residual = await self._compute(replica.numel, pack, change, replica.residual, self.spec.round)
            except NonFiniteError:
                self._take_back(replica)
                return
            tokens = change.tokens + min(replica.extra_tokens, change.tokens)
            replica.residual = residual if bool(residual.any()) else None
            replica.extra_tokens = 0
            replica.pending = Pending(replica.next_seq, change.version, tokens, change.steps, payload, sent)
            replica.next_seq += 1

    async def _rebase(self, replica: Replica, change: LocalChange) -> None:
        """Alone in the run, what was trained is the next version: bit for bit, with nothing to average or to send."""
        async with replica.lock:
            replica.offered = None
            try:
                made, digest_ = await self._compute(replica.numel, rebase, change, replica.residual, replica.owner_residual)
            except NonFiniteError:
                self._take_back(replica)
                return
            included = (Inclusion(self.me, replica.next_seq),)
            replica.next_seq += 1
            replica.residual = replica.owner_residual = None
            replica.reference = made
            replica.chain.rebased(digest_, self.me, included)
            replica.made_tokens += change.tokens
            if replica.round is not None:
                replica.round.advanced(replica.chain.version, included)
            self._mailbox.post(replica.shard, replica.chain.version, None if made is change.local else made)
            self._mailbox.settle(replica.shard)
            self.rounds += 1
            self.last_round = RoundStatus(replica.shard, replica.chain.version, 1.0, (), 1, 1)
        self._events.emit("round.closed", shard=replica.shard, version=replica.chain.version, n_included=1, n_expected=1)

    def _take_back(self, replica: Replica) -> None:
        """Local training diverged. The caller holds the lock."""
        text = f"shard {replica.shard}: the local parameters are not finite; taken back to the common model"
        self._events.error("push.non_finite", text)
        replica.residual = None  # it may be what is not finite, and would be so for ever
        self._mailbox.post(replica.shard, replica.chain.version, replica.reference)
        self._mailbox.settle(replica.shard, "local parameters are not finite")

    def _should_send(self, replica: Replica, now: float) -> bool:
        pending = replica.pending
        if pending is None:
            return False
        if pending.holder is not None:
            if pending.holder == self.ownership(replica.shard).owner or pending.holder == pending.redirect:
                lost = replica.chain.version >= pending.held_at_version + RESEND_AFTER_VERSIONS
                if not lost and self._lives(pending.holder):
                    return False
            pending.holder = None
            pending.redirect = None
        return now >= pending.not_before

    async def _send(self, replica: Replica) -> None:
        pending = replica.pending
        assert pending is not None
        target = pending.redirect or self.ownership(replica.shard).owner
        if target is None:
            pending.not_before = trio.current_time() + RETRY_S
            return
        if target == self.me:
            async with replica.lock:
                if replica.round is None:
                    pending.redirect = None
                    pending.not_before = trio.current_time() + RETRY_S
                    return
                self._enter(replica, self.me, pending.seq, pending.version, pending.tokens, pending.sent)
                pending.holder, pending.held_at_version = self.me, replica.chain.version
            return
        message = Push(
            self.run,
            replica.shard,
            pending.version,
            pending.seq,
            pending.tokens,
            pending.steps,
            self.spec.round.push_codec,
            pending.payload,
        )
        pending.attempts += 1
        try:
            reply = await self._ask_while_owner(replica, target, message)
        except RefusedError as refused:
            if refused.kind in ("CodecError", "DecodeError", "MisfitError"):
                self._events.error("push.refused", f"shard {replica.shard}: {refused}", peer=target)
                self._settle_failed(replica, str(refused))
                return
            reply = None
        except (NetworkError, DecodeError, trio.TooSlowError) as failed:
            self._events.emit("push.failed", shard=replica.shard, owner=target, reason=str(failed) or "no answer")
            reply = None
        if replica.pending is not pending:  # an update with it came in meanwhile
            return
        if isinstance(reply, Pushed):
            pending.holder, pending.held_at_version = target, max(reply.version, replica.chain.version)
            pending.redirect = target if target != self.ownership(replica.shard).owner else None
            if reply.included and not replica.chain.includes(self.me, pending.seq):
                self._follow(replica, target)
        elif isinstance(reply, NotOwner):
            try:
                self._members.take(reply.announcement, direct=False)
            except DecodeError as bad:
                self._messenger.report(target, f"bad announcement: {bad}")
            owner = PeerId(reply.owner)
            pending.redirect = owner if owner not in (self.me, target) and self._lives(owner) else None
            pending.not_before = trio.current_time() + (0.05 if pending.redirect and pending.attempts < 8 else RETRY_S)
        else:
            pending.redirect = None
            pending.not_before = trio.current_time() + RETRY_S

    async def _ask_while_owner(self, replica: Replica, target: PeerId, message: Push) -> Reply | None:
        """Ask, but give up as soon as another peer owns the shard: a hung owner must not hold up its heirs."""
        reply: Reply | None = None
        redirected = replica.pending is not None and replica.pending.redirect == target

        async def watch(scope: trio.CancelScope) -> None:
            while redirected or self.ownership(replica.shard).owner == target:
                await replica.bell.wait()
                if redirected and not self._lives(target):
                    break
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            async with self._transfers:
                with trio.move_on_after(TRANSFER_DEADLINE_S):
                    reply = await self._ask_quietly(target, message)
            nursery.cancel_scope.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _ask_quietly(self, peer: PeerId, message: Push) -> "Reply | Exception":
        """Errors as values: they would leave a nursery as a group."""
        try:
            return await self._ask(peer, message, Lane.BULK)
        except (NetworkError, DecodeError) as failed:
            return failed

    def _settle_failed(self, replica: Replica, reason: str) -> None:
        if replica.pending is not None:
            replica.pending = None
            self._mailbox.settle(replica.shard, reason)

    # following

    async def _on_update(self, peer: PeerId, message: Update) -> Held:
        header = self._open_update(peer, message)
        replica = self._replica(header.shard)
        if header.owner != peer:
            raise DecodeError(f"update of {header.owner} sent by {peer}")
        self._must_be_member(peer)
        if not self._may_make(replica, peer):
            raise NetworkError(f"shard {header.shard}: {peer} does not own it, as far as I know")
        # The lock is granted in order of arrival, so updates that came in order are judged in order.
        step = await self._apply(replica, header, message)
        if step is Step.BEHIND or (step is Step.FORKED and peer == self.ownership(replica.shard).owner):
            replica.sync_from = peer
            replica.bell.ring()
        return Held(replica.chain.version, replica.chain.digest)

    def _open_update(self, sender: PeerId, message: Update) -> UpdateHeader:
        header = decode_header(message.header)
        if header.run != self.run:
            raise MisfitError(f"update of run {header.run}, this is {self.run}")
        if header.codec != self.spec.round.update_codec:
            raise CodecError(f"update in codec {header.codec!r}, this run uses {self.spec.round.update_codec!r}")
        verify(header.owner, message.header, message.signature)
        return header

    async def _apply(self, replica: Replica, header: UpdateHeader, update: Update) -> Step:
        """Apply an update if it still fits; what it turned out to be."""
        async with replica.lock:
            step = replica.chain.judge(header)
            if step is not Step.APPLY:
                return step
            made, digest_ = await self._compute(replica.numel, advance, replica.reference, update.payload, header.codec)
            if digest_ != header.digest:
                raise DecodeError(f"shard {replica.shard} version {header.version}: the update does not lead to its digest")
            self._accept(replica, header, update, made)
            if header.owner != self.me:
                replica.made_tokens = 0
        self._note_round(header, header.version)
        return step

    def _accept(self, replica: Replica, header: UpdateHeader, update: Update, made: Tensor) -> None:
        """The shard has a new version. The caller holds the lock."""
        replica.reference = made
        replica.chain.applied(header, update)
        if replica.round is not None:
            replica.round.advanced(header.version, header.included)
            waiting = {c.peer for c in replica.round.waiting}
            replica.arrived = {peer: value for peer, value in replica.arrived.items() if peer in waiting}
        # Settled before posted would let the training thread push before it has seen the version that contains its last push.
        self._mailbox.post(replica.shard, header.version, made)
        replica.next_seq = max(replica.next_seq, 1 + replica.chain.newest(self.me))
        self._settle_if_included(replica)
        for failure in header.failed:
            if failure.peer == self.me and failure.reason != LATE:
                self._settle_failed(replica, failure.reason)
        replica.bell.ring()

    def _settle_if_included(self, replica: Replica) -> None:
        if replica.pending is not None and replica.chain.includes(self.me, replica.pending.seq):
            replica.pending = None
            self._mailbox.settle(replica.shard)

    def _note_round(self, header: UpdateHeader, version: int) -> None:
        self.rounds += 1
        failed = tuple(FailedPush(f.peer, f.reason) for f in header.failed)
        self.last_round = RoundStatus(
            header.shard, version, header.averaged_fraction, failed, len(header.included), header.expected
        )
        self._events.emit(
            "round.closed",
            shard=header.shard,
            version=version,
            n_included=len(header.included),
            n_expected=header.expected,
            digest=header.digest.hex()[:16],
            averaged_fraction=round(header.averaged_fraction, 4),
            failed=[{"peer_id": f.peer, "reason": f.reason} for f in header.failed],
            owner=header.owner,
        )

    # catching up

    def _look_for_news(self) -> None:
        """Compare announced marks with ours; whoever is to be followed and differs is asked."""
        for announcement in self._members.everyone():
            if announcement.peer_id == self.me or not announcement.ready or announcement.region != self.region:
                continue
            marks = unpack_marks(announcement.marks)
            if len(marks) != self.plan.n_shards:
                continue
            peer = PeerId(announcement.peer_id)
            for shard, replica in self.replicas.items():
                if self._is_news(replica, peer, marks[shard]):
                    self._follow(replica, peer)

    def _is_news(self, replica: Replica, peer: PeerId, mark: Mark) -> bool:
        owner = self.ownership(replica.shard).owner
        ahead = mark.version > replica.chain.version
        if owner == self.me:  # an owner that was away, or a standby that took over, may be behind the members
            return ahead
        if owner != peer:
            return False
        if replica.chain.holds(mark) is False:
            return True
        if not ahead:
            replica.behind_since = None
            return False
        # The update is most likely on its way: fetch only if it does not come, or its bytes are paid for twice.
        now = trio.current_time()
        if replica.behind_since is None or replica.behind_at != replica.chain.version:
            replica.behind_at, replica.behind_since = replica.chain.version, now
            return False
        return now - replica.behind_since >= self._members.config.announce_s

    async def sync_all(self) -> None:
        """Fetch what is missing here of every shard from its owner, as far as it answers."""
        async with trio.open_nursery() as nursery:
            for shard, replica in self.replicas.items():
                owner = self.ownership(shard).owner
                if owner is not None and owner != self.me:
                    nursery.start_soon(self._sync, replica, owner)

    async def _sync(self, replica: Replica, peer: PeerId, *, log_only: bool = False) -> None:
        """Fetch from `peer` what is missing here: updates, or where these do not reach and it is allowed, the whole shard.

        From a member that only says that it is ahead, nothing but updates of those whose versions are to be followed.
        """
        trusted = self._may_make(replica, peer) or self._holds_what_most_hold(replica, peer)
        before = (replica.chain.version, replica.chain.digest)
        request = GetUpdates(self.run, replica.shard, *before, log_only or not trusted)
        try:
            async with self._transfers:
                with trio.fail_after(TRANSFER_DEADLINE_S if trusted else CLAIM_DEADLINE_S):
                    reply = await self._ask(peer, request, Lane.BULK)
            if isinstance(reply, Updates):
                for update in reply.updates:
                    header = self._open_update(peer, update)
                    if header.shard != replica.shard:
                        raise DecodeError(f"asked for updates of shard {replica.shard}, got one of {header.shard}")
                    if not trusted and not self._may_make(replica, PeerId(header.owner)):
                        break
                    if await self._apply(replica, header, update) not in (Step.APPLY, Step.KNOWN):
                        break
            elif isinstance(reply, ShardState) and not request.log_only:
                await self._adopt(replica, peer, reply)
            else:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got {type(reply).__name__}")
        except RefusedError:
            pass  # it has nothing for us; its next announcement will tell
        except NetworkError as failed:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(failed))
            return  # whether it lives is decided elsewhere
        except trio.TooSlowError:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason="no answer in time")
        except (DecodeError, MisfitError) as bad:
            self._messenger.report(peer, f"bad state of shard {replica.shard}: {bad}")
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        self._note_sync(replica, peer, trusted, came_forward=before != (replica.chain.version, replica.chain.digest))

    def _follow(self, replica: Replica, peer: PeerId) -> None:
        """`peer` says that it is ahead: ask it, unless what it said before came to nothing a moment ago."""
        not_before, _ = self._fruitless.get((peer, replica.shard), (-math.inf, 0.0))
        if trio.current_time() >= not_before:
            replica.sync_from = peer
            replica.bell.ring()

    def _note_sync(self, replica: Replica, peer: PeerId, trusted: bool, came_forward: bool) -> None:
        """Whose claims come to nothing is asked more and more rarely: a liar must not keep an owner busy."""
        _, pause_s = self._fruitless.pop((peer, replica.shard), (0.0, 0.0))
        if came_forward:
            return
        announce_s = self._members.config.announce_s
        pause_s = announce_s if trusted else min(max(2 * pause_s, announce_s), MAX_CLAIM_PAUSE_S)
        self._fruitless[peer, replica.shard] = (trio.current_time() + pause_s, pause_s)
        while len(self._fruitless) > MAX_CLAIMS:
            del self._fruitless[next(iter(self._fruitless))]

    def _may_make(self, replica: Replica, peer: PeerId) -> bool:
        """Whether versions that `peer` made are to be followed: it owns the shard, or made the version that we hold, or stands by
        for an owner that is silent. Views differ for seconds; who is refused wrongly is followed once we see what it saw.
        """
        owners = self.ownership(replica.shard)
        if peer in (self.me, owners.owner, replica.chain.owner):
            return True
        if peer != owners.standby or owners.owner is None or owners.owner == self.me:
            return False
        owner = self._members.table.get(owners.owner)
        return owner is None or owner.liveness is not Liveness.ALIVE

    def _holds_what_most_hold(self, replica: Replica, peer: PeerId) -> bool:
        """Whether more than half of the others announce the same state of the shard as `peer`."""
        marks: list[Mark | None] = []
        of_peer: Mark | None = None
        for announcement in self._members.everyone():
            if announcement.peer_id == self.me or not announcement.ready or announcement.region != self.region:
                continue
            all_marks = unpack_marks(announcement.marks)
            marks.append(all_marks[replica.shard] if len(all_marks) == self.plan.n_shards else None)
            if announcement.peer_id == peer:
                of_peer = marks[-1]
        return of_peer is not None and 2 * marks.count(of_peer) > len(marks)

    async def _adopt(self, replica: Replica, peer: PeerId, state: ShardState) -> None:
        """Take over a whole shard. What this peer alone had made of it goes with its next push."""
        if state.shard != replica.shard:
            raise DecodeError(f"asked for shard {replica.shard}, got {state.shard}")
        if state.version > replica.chain.version + MAX_VERSION_JUMP:
            raise DecodeError(f"shard {state.shard} version {state.version}, ours is {replica.chain.version}: that cannot be")
        theirs = await self._compute(replica.numel, codec.get("fp32").decode, state.payload, replica.numel)
        if await self._compute(replica.numel, digest, theirs) != state.digest:
            raise DecodeError(f"shard {state.shard} version {state.version} does not have its digest")
        async with replica.lock:
            if replica.round is not None and not state.ancestor:
                return  # two chains, and rendezvous says that ours prevails
            if replica.chain.passed(state.version, state.digest):
                return  # what came meanwhile is as new, or newer
            if not state.ancestor and replica.made_tokens > 0:
                ours_ahead = theirs - replica.reference
                replica.residual = ours_ahead if replica.residual is None else replica.residual + ours_ahead
                replica.extra_tokens = replica.made_tokens
                self._events.emit("shard.merged", shard=replica.shard, tokens=replica.made_tokens, owner=peer)
            replica.made_tokens = 0
            replica.reference = theirs
            replica.chain = Chain(state.version, state.digest, _log_bytes(replica.numel), state.included, peer)
            replica.next_seq = max(replica.next_seq, 1 + replica.chain.newest(self.me))
            if replica.round is not None:
                replica.round.advanced(state.version, state.included)
            self._mailbox.post(replica.shard, state.version, theirs)
            self._settle_if_included(replica)
        self._events.emit("shard.fetched", shard=replica.shard, version=state.version, peer=peer)

    async def _on_get_updates(self, message: GetUpdates) -> Reply:
        replica = self._replica(message.shard)
        async with replica.lock:  # a round that closes now should be in the answer
            updates = replica.chain.since(message.version, message.digest)
            if updates is not None:
                return Updates(updates, message.version)
            if message.log_only:
                return Updates((), None)
        return await self._state(replica, replica.chain.passed(message.version, message.digest))

    async def _on_get_shard(self, message: GetShard) -> Reply:
        return await self._state(self._replica(message.shard), ancestor=False)

    async def _state(self, replica: Replica, ancestor: bool) -> ShardState:
        async with replica.lock:
            reference, chain = replica.reference, replica.chain
            version, digest_, included = chain.version, chain.digest, chain.included()
        payload = await self._compute(replica.numel, codec.get("fp32").encode, reference)
        return ShardState(replica.shard, version, digest_, included, payload, ancestor)

    # small things

    def _replica(self, shard: int) -> Replica:
        replica = self.replicas.get(shard)
        if replica is None:
            if shard >= self.plan.n_shards:
                raise DecodeError(f"shard {shard}, there are {self.plan.n_shards}")
            raise NetworkError(f"shard {shard} is not held here yet")
        return replica

    def _must_be_member(self, peer: PeerId) -> None:
        if not self._members.is_known(peer):
            raise RemoteProtocolError(peer, "not a known member of this run: send an announcement first")

    def _lives(self, peer: PeerId) -> bool:
        if peer == self.me:
            return True
        member = self._members.table.get(peer)
        return member is not None and member.liveness is not Liveness.DEAD

    async def _ask(self, peer: PeerId, message: Request, lane: Lane) -> Reply:
        try:
            raw = await self._messenger.request(peer, encode(message), lane=lane)
        except UnreachableError:
            self._members.lost(peer)
            raise
        self._members.heard(peer)
        return decode_reply(raw)

    async def _compute(self, n_elements: int, fn: Callable, *args):  # type: ignore[no-untyped-def, type-arg]
        return fn(*args) if n_elements <= INLINE_ELEMENTS else await self._offload(fn, *args)
