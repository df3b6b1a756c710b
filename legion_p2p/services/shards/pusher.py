"""Between a member and an owner: bringing this peer's own changes to the owner of the shard. Decided in core/shard/push.py."""

from collections.abc import Callable

import trio

from legion_p2p.core.account import sign_push
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import follower_events, push_events
from legion_p2p.core.shard.push_events import Packed
from legion_p2p.core.wire import MAX_COUNT, Inclusion, Push, Pushed, UpdateHeader
from legion_p2p.errors import (
    DecodeError,
    NetworkError,
    NoAnswerError,
    NonFiniteError,
    NotAdmittedError,
    NotCountedError,
    RefusedError,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.inputs import payload_digest
from legion_p2p.services.shards.mailbox import NON_FINITE
from legion_p2p.services.shards.privacy import PrivateReleases
from legion_p2p.services.shards.receipts import Receipts
from legion_p2p.services.shards.replica import Body, LocalChange, Replica, pack, rebase
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.tensor.encoded import Payload

MALFORMED = ("CodecError", "DecodeError", "IncompatibleModelError")
"""Refusals that would come again, whenever the same is sent."""

Submit = Callable[[Replica, Packed], bool]
"""Puts a contribution of this peer into its own round; False: it does not own the shard."""


class PushService:
    """Pushes what the training thread hands in, until an update contains it."""

    def __init__(self, ctx: PeerContext, states: ShardStates, receipts: Receipts, submit: Submit) -> None:
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._identity = ctx.identity
        self._states = states
        self._receipts = receipts
        self._submit = submit
        self._rounds = ctx.spec.round
        self.private = None if ctx.config.privacy is None else PrivateReleases(ctx, ctx.config.privacy)
        """Shortens changes and adds noise, where this peer's user wants that."""
        self._asking: dict[int, trio.CancelScope] = {}
        """By shard: the request that carries its contribution."""

    def contribute(self, change: LocalChange) -> None:
        """A local change to push. Its shard must have been settled since the last one."""
        replica = self._states.replicas[change.shard]
        alone = self._states.members.roster.alone() and change.version == replica.chain.version
        alone = alone and self.private is None  # what is trained alone is seen by those that join later
        self._tell(replica, push_events.Offered(change, change.version, change.tokens, change.steps, alone))

    def encodes_at_once(self, replica: Replica) -> bool:
        """Whether `encode` has nothing to wait for."""
        return self.private is None and replica.lock.is_free and self._states.computes_at_once(replica.numel)

    async def encode(self, replica: Replica, change: LocalChange) -> None:
        """Compress a change."""
        warm_up = self._rounds.warmup_codec if change.warming_up else ""
        name = warm_up or self._states.push_codec
        async with replica.lock:
            codec = self._states.codec_of(replica, name)
            decay = self._rounds.feedback_decay
            release = None if self.private is None else await self.private.charge(replica.numel)
            try:
                payload, kept = await self._states.compute(
                    replica.numel, pack, change, replica.kept, codec, decay, self._states.keep, release
                )
            except NonFiniteError:
                self._take_back(replica)
                return
            if self.private is not None and release is not None:
                self.private.note(release)
            replica.kept = kept
            digest = b""
            if self._rounds.verify != "none":
                digest = await self._states.compute(replica.numel, payload_digest, payload)
            body = Body(name, payload, Payload(codec, payload, replica.numel), digest)
            self._tell(replica, push_events.CompressDone(body, self._states.ramp_pushes))
            self._states.packed.tell(replica)

    async def rebase(self, replica: Replica, change: LocalChange, seq: int) -> None:
        """Alone in the run, what was trained is the next version: bit for bit, with nothing to average or to send."""
        states = self._states
        async with replica.lock:
            try:
                made, digest = await states.compute(replica.numel, rebase, change, replica.residual, replica.owner_residual)
            except NonFiniteError:
                self._take_back(replica)
                return
            included = (Inclusion(states.me, seq),)
            replica.residual = replica.owner_residual = None
            replica.common = held = await states.to_hold(made)
            before = replica.chain.digest
            replica.chain.rebased(digest, states.me, included)
            replica.forget_final()
            version = replica.chain.version
            replica.life.owner.made_tokens += change.tokens
            states.mailbox.post(replica.shard, version, None if held is change.local else held)
            states.advanced(replica, included)
            self._tell(replica, push_events.Rebased(seq))
            states.replaced.tell(replica)
        tokens = min(change.tokens, MAX_COUNT)
        as_update = UpdateHeader(
            states.run, replica.shard, version, before, digest, states.me, "", included, (), 1, tokens
        )  # fmt: skip
        states.round_log.note(as_update, version)

    def enter(self, replica: Replica, packed: Packed) -> None:
        """This peer owns the shard: its contribution needs no network."""
        if self._submit(replica, packed):
            self._tell(replica, push_events.Accepted(packed.seq, replica.chain.version))
        else:
            self._tell(replica, push_events.Unanswered(packed.seq))

    async def send(self, replica: Replica, target: PeerId, packed: Packed) -> None:
        """Ask `target` to take the contribution. Cancelled by `give_up`, and after a while."""
        scope = self._asking[replica.shard] = trio.CancelScope()
        answer: push_events.Event | None = None
        try:
            with scope:
                answer = await self._ask(replica, target, packed, scope)
        finally:
            is_given_up = self._asking.get(replica.shard) is not scope
            if not is_given_up:
                del self._asking[replica.shard]
        if answer is None and not is_given_up:
            answer = self._unanswered(replica, target, packed, NoAnswerError(target, TRANSFER_DEADLINE_S))
        if answer is not None:
            self._tell(replica, answer)

    def give_up(self, replica: Replica) -> None:
        """A hung owner must not hold up the next one."""
        scope = self._asking.pop(replica.shard, None)
        if scope is not None:
            scope.cancel()

    async def _ask(self, replica: Replica, target: PeerId, packed: Packed, scope: trio.CancelScope) -> push_events.Event:
        states, body = self._states, packed.body
        message = Push(
            states.run, replica.shard, packed.version, packed.seq, packed.tokens, packed.steps, body.codec, body.payload,
            sign_push(states.claim_of(replica, packed), self._identity) if body.digest else b"",
        )  # fmt: skip
        try:
            async with states.transfers:
                scope.deadline = trio.current_time() + TRANSFER_DEADLINE_S
                reply = await states.rpc.ask(target, message, Priority.ROUND)
        except RefusedError as refused:
            if refused.kind == NotCountedError.__name__:  # this peer's user is told when the evidence comes
                return push_events.Malformed(packed.seq, str(refused))
            if refused.kind in MALFORMED:
                self._events.error("push.refused", f"shard {replica.shard}: {refused}", peer=target)
                return push_events.Malformed(packed.seq, str(refused))
            return push_events.Unanswered(packed.seq)
        except NetworkError as failed:
            return self._unanswered(replica, target, packed, failed)
        if isinstance(reply, Pushed):
            try:
                self._receipts.take(target, replica.shard, packed.seq, reply)
            except DecodeError as bad:
                self._messenger.report(target, f"bad receipt: {bad}")
                return push_events.Unanswered(packed.seq)
            return push_events.Accepted(packed.seq, reply.version, reply.included)
        try:
            states.members.take(reply.announcement, direct=False)
        except DecodeError as bad:
            self._messenger.report(target, f"bad announcement: {bad}")
        except NotAdmittedError as refused:  # this peer's user has banned the owner, say
            self._events.emit("announcement.refused", peer=target, reason=str(refused))
        owner = PeerId(reply.owner)
        return push_events.Redirected(packed.seq, owner if states.lives(owner) else None)

    def _unanswered(self, replica: Replica, target: PeerId, packed: Packed, failed: NetworkError) -> push_events.Event:
        if not self._states.reachability.is_cut_off():  # that was told, in a line for all that cannot be sent
            self._events.emit("push.failed", shard=replica.shard, owner=target, reason=str(failed))
        return push_events.Unanswered(packed.seq)

    def ask_for_included(self, replica: Replica, owner: PeerId) -> None:
        """`owner` has made a version with the contribution, and it is not here."""
        replica.life.follower.handle(follower_events.Shown(owner), trio.current_time())

    def _take_back(self, replica: Replica) -> None:
        """Local training diverged. The caller holds the lock."""
        self._events.emit("push.non_finite", shard=replica.shard)  # the training side tells the user, once
        replica.residual = None  # it may be what is not finite, and would be so for ever
        self._states.mailbox.post(replica.shard, replica.chain.version, replica.common)
        self._tell(replica, push_events.Unusable(NON_FINITE))

    def _tell(self, replica: Replica, event: push_events.Event) -> None:
        replica.life.push.handle(event, trio.current_time())
        self._states.wake(replica)
