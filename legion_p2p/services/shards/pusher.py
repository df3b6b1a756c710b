"""Between a member and an owner, in the other direction: bringing this peer's own changes to whoever owns the shard."""

import math

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.round import ramped_weight
from legion_p2p.core.wire import (
    MAX_COUNT,
    Inclusion,
    NotOwner,
    Push,
    Pushed,
    Reply,
    UpdateHeader,
)
from legion_p2p.errors import (
    DecodeError,
    NetworkError,
    NonFiniteError,
    RefusedError,
)
from legion_p2p.services.shards.follower import TRANSFER_DEADLINE_S
from legion_p2p.services.shards.mailbox import NON_FINITE
from legion_p2p.services.shards.owner import Owning
from legion_p2p.services.shards.replica import LocalChange, Pending, Replica, pack, rebase

RETRY_S = 1.0  # between attempts to reach an owner that does not answer; its death is decided by membership
RESEND_AFTER_S = 10.0  # an owner that stopped being one for a moment forgot what it held; sent again, it counts once
RESEND_REDIRECTED_S = 2.0  # one that is none by our own view, but said to be by others: it may stop being one at any moment
RESEND_AFTER_VERSIONS = 3  # an owner that made this many versions without our push has lost it


class Pushing(Owning):
    """Pushes what the training thread hands in, until an update contains it."""

    def contribute(self, change: LocalChange) -> None:
        """A local change to push. Its shard must have been settled since the last one."""
        replica = self.replicas[change.shard]
        replica.offered = change
        replica.notify.notify()

    async def _push(self, replica: Replica) -> None:
        """Bring this peer's own changes to the owner. A task of its own: a slow transfer holds up nothing else."""
        while True:
            if replica.offered is not None and replica.pending is None:
                await self._prepare(replica, replica.offered)
            elif self._should_send(replica, trio.current_time()):
                await self._send(replica)
                replica.notify.notify()
            else:
                pending = replica.pending
                with trio.move_on_at(math.inf if pending is None else pending.not_before):
                    await replica.notify.wait()

    async def _prepare(self, replica: Replica, change: LocalChange) -> None:
        if self._members.alone() and change.version == replica.chain.version:
            await self._rebase(replica, change)
            return
        name = self.spec.round.warmup_codec if change.warming_up and self.spec.round.warmup_codec else self.push_codec
        async with replica.lock:
            replica.offered = None
            try:
                payload, sent, residual = await self.compute(
                    replica.numel, pack, change, replica.residual, self.codec_of(replica, name), self.spec.round.feedback_decay
                )
            except NonFiniteError:
                self._take_back(replica)
                return
            tokens = change.tokens + min(replica.extra_tokens, change.tokens)
            tokens = ramped_weight(tokens, replica.n_pushed, self.ramp_pushes)
            replica.n_pushed += 1
            replica.residual = residual if bool(residual.any()) else None
            replica.extra_tokens = 0
            replica.pending = Pending(replica.next_seq, change.version, tokens, change.steps, name, payload, sent)
            replica.next_seq += 1

    async def _rebase(self, replica: Replica, change: LocalChange) -> None:
        """Alone in the run, what was trained is the next version: bit for bit, with nothing to average or to send."""
        async with replica.lock:
            replica.offered = None
            try:
                made, digest_ = await self.compute(replica.numel, rebase, change, replica.residual, replica.owner_residual)
            except NonFiniteError:
                self._take_back(replica)
                return
            included = (Inclusion(self.me, replica.next_seq),)
            replica.next_seq += 1
            replica.residual = replica.owner_residual = None
            replica.reference = made
            before = replica.chain.digest
            replica.chain.rebased(digest_, self.me, included)
            version = replica.chain.version
            replica.made_tokens += change.tokens
            if replica.round is not None:
                replica.round.advanced(replica.chain.version, included)
            self._mailbox.post(replica.shard, replica.chain.version, None if made is change.local else made)
            self._mailbox.settle(replica.shard)
            self.on_replaced(replica)
        as_update = UpdateHeader(
            self.run, replica.shard, version, before, digest_, self.me, "", included, (), 1, min(change.tokens, MAX_COUNT)
        )
        self._note_round(as_update, version)

    def _take_back(self, replica: Replica) -> None:
        """Local training diverged. The caller holds the lock."""
        self._events.emit("push.non_finite", shard=replica.shard)  # the training side tells the user, once
        replica.residual = None  # it may be what is not finite, and would be so for ever
        self._mailbox.post(replica.shard, replica.chain.version, replica.reference)
        self._mailbox.settle(replica.shard, NON_FINITE)

    def _should_send(self, replica: Replica, now: float) -> bool:
        pending = replica.pending
        if pending is None:
            return False
        if pending.holder is not None:
            if pending.holder == self.ownership(replica.shard).owner or pending.holder == pending.redirect:
                lost = replica.chain.version >= pending.held_at_version + RESEND_AFTER_VERSIONS or now >= pending.not_before
                if not lost and self._lives(pending.holder):
                    return False
            pending.holder = None
            pending.redirect = None
            pending.not_before = now
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
                self._enter(replica, self.me, pending.seq, pending.version, pending.tokens, pending.sent, pending.codec)
                pending.holder, pending.held_at_version = self.me, replica.chain.version
            pending.not_before = trio.current_time() + RESEND_AFTER_S
            return
        message = Push(
            self.run,
            replica.shard,
            pending.version,
            pending.seq,
            pending.tokens,
            pending.steps,
            pending.codec,
            pending.payload,
        )
        pending.attempts += 1
        try:
            reply = await self._ask_while_owner(replica, target, message)
        except RefusedError as refused:
            if refused.kind in ("CodecError", "DecodeError", "IncompatibleModelError"):
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
            redirected = target != self.ownership(replica.shard).owner
            pending.redirect = target if redirected else None
            pending.not_before = trio.current_time() + (RESEND_REDIRECTED_S if redirected else RESEND_AFTER_S)
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
                await replica.notify.wait()
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
            return await self._ask(peer, message, Priority.ROUND)
        except (NetworkError, DecodeError) as failed:
            return failed
