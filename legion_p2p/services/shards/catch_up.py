"""Between a member and others: fetching what was missed of a shard, as updates or whole.

Which peers are asked is decided in core/shard/follower.py, and which are believed in belief.py.
"""

import random
from collections.abc import Iterable

import msgspec
import trio

from legion_p2p.core.chain import Step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import follower_events, push_events
from legion_p2p.core.shard.belief import Adoption, judge_whole
from legion_p2p.core.wire import MAX_COUNT, Busy, GetUpdates, ShardState, Updates
from legion_p2p.errors import (
    DecodeError,
    IncompatibleModelError,
    NetworkError,
    NoAnswerError,
    NotCosignedError,
    RefusedError,
    RemoteProtocolError,
    TooLongError,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.cosignatures import Cosignatures
from legion_p2p.services.shards.follower import FollowService, ReceivedUpdate
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.services.shards.taking_back import REPLACED, TakeBackService
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState

CLAIM_DEADLINE_S = 2.0  # for a member that only says it is ahead to prove it: meanwhile the round waits
ADOPT_S = 1.0  # between two attempts to fetch what a region has that this peer moves to
MAX_MISSED = 256  # versions for which a whole shard may differ: a made-up version number allows no more
BUSY_S = 60.0  # for which a peer may say that it is busy: what is missing then is fetched when others tell of it


class CatchUpService:
    """Fetches what this peer lacks of the shards."""

    def __init__(
        self,
        ctx: PeerContext,
        states: ShardStates,
        news: ShardNews,
        follower: FollowService,
        cosignatures: Cosignatures,
        taking_back: TakeBackService,
    ) -> None:
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._rng: random.Random = ctx.rng
        self._states = states
        self._news = news
        self._follower = follower
        self._cosignatures = cosignatures
        self._taking_back = taking_back

    async def sync_all(self) -> None:
        """Fetch what is missing here of every shard from its owner, as far as it answers."""
        await self.sync(self._states.replicas)

    async def sync(self, shards: Iterable[int]) -> None:
        """The same, of these shards."""
        async with trio.open_nursery() as nursery:
            for shard in shards:
                owner = self._states.ownership(shard).owner
                if owner is not None and owner != self._states.me:
                    nursery.start_soon(self.fetch_patiently, self._states.replicas[shard], owner)

    async def adopt_region(self) -> None:
        """After a move: take over every shard as the new region has it, if anybody there does. What was trained goes there."""
        states = self._states
        before = {shard: replica.chain.n_replaced for shard, replica in states.replicas.items()}
        for replica in states.replicas.values():
            replica.life.owner.made_tokens = 0  # that is in the copy of the region that was left, and stays there
        waiting = set(before)
        while waiting and any(states.ownership(shard).owner is not None for shard in waiting):
            async with trio.open_nursery() as nursery:
                for shard in waiting:
                    owner = states.ownership(shard).owner
                    if owner is not None:
                        nursery.start_soon(self._adopt_from, states.replicas[shard], owner)
            waiting = {shard for shard in waiting if self._is_still_at(states.replicas[shard], before[shard])}
            if waiting:
                with trio.move_on_after(ADOPT_S):
                    await states.members.changed.wait()
        for shard, replica in states.replicas.items():
            if shard in waiting:
                continue
            async with replica.lock:
                replica.owner_residual, replica.outer = None, OuterState()
                replica.life.push.handle(push_events.Moved(replica.chain.version), trio.current_time())
            states.wake(replica)

    async def _adopt_from(self, replica: Replica, owner: PeerId) -> None:
        await self.fetch_patiently(replica, owner)
        await self._news.hear(replica, [owner])

    def _is_still_at(self, replica: Replica, n_replaced: int) -> bool:
        """Neither is it on another chain than before, nor is that one the owner's as well."""
        owner = self._states.ownership(replica.shard).owner
        if replica.chain.n_replaced != n_replaced or owner is None:
            return False
        mark = self._news.said_by(owner, replica)
        return mark is None or replica.chain.holds(mark) is not True

    async def fetch_what_is_promised(self, replica: Replica, peer: PeerId, within_s: float | None) -> None:
        """`fetch` of a promised version: `within_s` is known to be needed."""
        await self.fetch(replica, peer, within_s=max(CLAIM_DEADLINE_S, within_s or 0.0))

    async def fetch_patiently(
        self, replica: Replica, peer: PeerId, *, log_only: bool = False, trusted: bool = False, within_s: float = CLAIM_DEADLINE_S
    ) -> None:
        """`fetch`, again and again while `peer` is busy, for BUSY_S."""
        self._news.tell(replica, follower_events.AskBegun(peer))
        try:
            give_up_at = trio.current_time() + BUSY_S
            while trio.current_time() < give_up_at:
                retry_s = await self.fetch(replica, peer, log_only=log_only, trusted=trusted, within_s=within_s)
                if retry_s is None:
                    return
                await trio.sleep(retry_s * self._rng.uniform(1.0, 1.5))  # so that not all that wait come at the same moment
        finally:
            self._news.tell(replica, follower_events.AskEnded(peer))

    async def fetch(
        self, replica: Replica, peer: PeerId, *, log_only: bool = False, trusted: bool = False, within_s: float = CLAIM_DEADLINE_S
    ) -> float | None:
        """Fetch from `peer` what is missing here: updates, or where these do not reach and it is allowed, the whole shard.

        From a member that only says that it is ahead, nothing but updates of those whose versions are to be followed, and only
        `within_s`. From one that announces what most announce, everything, within the time that a slow link takes: identities
        cost nothing, so a majority may be silent liars. Returns when to come again, if `peer` is busy.
        """
        states = self._states
        known = trusted or self._follower.may_make(replica, peer)
        if not known:
            await self._news.hear(replica)
        is_held = self._news.holds_what_most_hold(replica, peer)
        is_common = trusted or is_held
        is_vouched, trusted = trusted, known or is_held
        if trusted:
            within_s = TRANSFER_DEADLINE_S if known else self._transfer_s(replica)
        before = (replica.chain.version, replica.chain.digest)
        requests = [GetUpdates(states.run, replica.shard, *at, log_only or not trusted) for at in self._starts(replica, peer)]
        is_waited_for = states.ownership(replica.shard).owner == states.me
        priority = Priority.ROUND if is_waited_for else Priority.CATCH_UP
        try:
            async with states.urgent if is_waited_for else states.transfers:
                for request in requests:
                    reply = await states.rpc.ask(peer, request, priority, within_s=within_s)
                    if not isinstance(reply, ShardState) or reply.ancestor:
                        break
            if isinstance(reply, Busy):
                self._news.tell(replica, follower_events.TurnedAway(peer, reply.retry_ms / 1000))
                return reply.retry_ms / 1000
            if isinstance(reply, Updates):
                await self._take_updates(replica, reply, trusted, is_common, is_vouched)
            elif request.log_only:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got {type(reply).__name__}")
            else:
                if not is_vouched:
                    await self._cosignatures.must_be_shown_of(replica, reply)
                if (request.version, request.digest) != before:  # the newest versions that are held here are none of its
                    reply = msgspec.structs.replace(reply, ancestor=False)
                await self._adopt(replica, peer, reply, is_common)
        except (RefusedError, TooLongError, NotCosignedError):
            pass  # it has nothing for us; what others announce will tell
        except NoAnswerError as late:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(late))
        except RemoteProtocolError as bad:
            known = False  # a peer that lies for ever is asked more and more rarely, whatever it made before: rounds wait for it
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        except NetworkError as failed:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(failed))
            self._news.tell(replica, follower_events.Unreachable(peer))
            return None
        except (DecodeError, IncompatibleModelError) as bad:
            known = False
            self._messenger.report(peer, f"bad state of shard {replica.shard}: {bad}")
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        came_forward = before != (replica.chain.version, replica.chain.digest)
        self._news.tell(replica, follower_events.FetchEnded(peer, came_forward, known))
        return None

    def _starts(self, replica: Replica, peer: PeerId) -> list[tuple[int, bytes]]:
        """The states of which `peer` is asked what comes after them, one after the other: the one that is held; and the last one
        that will not be taken back, where `peer` has another chain."""
        chain, final = replica.chain, replica.provisional.final
        held, digest_then = (chain.version, chain.digest), chain.digest_of(final)
        if not replica.provisional.n or digest_then is None:
            return [held]
        parts = self._news.parts_from(replica, peer)
        return [(final, digest_then)] if parts else [held, (final, digest_then)]

    def _transfer_s(self, replica: Replica) -> float:
        """What the shard whole may take: the largest TRANSFER_DEADLINE_S."""
        return CLAIM_DEADLINE_S + TRANSFER_DEADLINE_S * replica.numel / MAX_SHARD_ELEMENTS

    async def _take_updates(self, replica: Replica, reply: Updates, trusted: bool, is_common: bool, is_vouched: bool) -> None:
        if trusted:
            replica.norms.learn(reply.norms)
        for update in reply.updates:
            header = self._follower.open_update(update)
            if header.shard != replica.shard:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got one of {header.shard}")
            if not trusted and not self._follower.may_make(replica, PeerId(header.owner)):
                break
            step = await self._follower.apply(
                replica, header, update, is_common=is_common, is_vouched=is_vouched, is_followed=trusted
            )
            if step not in (Step.APPLY, Step.KNOWN):
                break
            if step is Step.APPLY:
                self._follower.received.tell(ReceivedUpdate(replica, header, update, None))

    async def _adopt(self, replica: Replica, peer: PeerId, state: ShardState, is_common: bool) -> None:
        """Take over a whole shard. What this peer alone had made of it goes with its next push."""
        states = self._states
        if state.shard != replica.shard:
            raise DecodeError(f"asked for shard {replica.shard}, got {state.shard}")
        if self._judge(replica, state) is Adoption.IMPOSSIBLE:
            raise DecodeError(f"shard {state.shard} version {state.version}, ours is {replica.chain.version}: that cannot be")
        theirs = await states.compute(replica.numel, codec.get("fp32").decode, state.payload, replica.numel)
        if await states.compute(replica.numel, digest, theirs) != state.digest:
            raise DecodeError(f"shard {state.shard} version {state.version} does not have its digest")
        async with replica.lock:
            adoption = self._judge(replica, state)
            if adoption is Adoption.OURS_PREVAILS and is_common and state.version > replica.chain.version:
                self._news.tell(replica, follower_events.Parted())
            if adoption in (Adoption.OURS_PREVAILS, Adoption.KNOWN) or replica.provisional.refuses(state.digest):
                return
            longest = replica.norms.longest
            if longest is not None and not is_common:
                n_missed = min(max(1, state.version - replica.chain.version), MAX_MISSED)
                await self._follower.must_not_be_longer(
                    replica, peer, float((replica.reference - theirs).norm()), longest * n_missed
                )
            if replica.provisional.n and not state.ancestor:
                await self._taking_back.return_to(replica, replica.provisional.final, REPLACED)
            replica.norms.replace(state.norms)
            owner = replica.life.owner
            if adoption is Adoption.MERGE and owner.made_tokens > 0:  # what is taken back comes again by itself
                ours_ahead = theirs - replica.reference
                replica.residual = ours_ahead if replica.residual is None else replica.residual + ours_ahead
                tokens = replica.life.push.extra_tokens + owner.made_tokens
                replica.life.push.handle(push_events.Merged(min(tokens, MAX_COUNT)), trio.current_time())
                self._events.emit("shard.merged", shard=replica.shard, tokens=owner.made_tokens, owner=peer)
            owner.made_tokens = 0
            replica.common = held = await self._states.to_hold(theirs)
            replica.chain.replaced(state.version, state.digest, peer, state.included, salt=state.salt)
            replica.forget_final()
            states.mailbox.post(replica.shard, state.version, held)
            states.advanced(replica, state.included)
            states.replaced.tell(replica)
        self._events.emit("shard.fetched", shard=replica.shard, version=state.version, peer=peer)

    def _judge(self, replica: Replica, state: ShardState) -> Adoption:
        return judge_whole(
            replica.chain,
            state.version,
            state.digest,
            is_ancestor=state.ancestor,
            owns=replica.round is not None and not self._is_left_alone(replica),
            made_tokens=replica.life.owner.made_tokens,
        )

    def _is_left_alone(self, replica: Replica) -> bool:
        """Whether others do not follow what this peer makes of the shard as its owner."""
        follower = replica.life.follower
        return self._news.outvoted_by(replica) is not None or follower.is_left_alone(trio.current_time())
