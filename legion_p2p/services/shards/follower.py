"""Between a member and an owner, in one direction: taking over what the owner published, and catching up with what was missed.

Also the answers to those who catch up with us. Whom to believe is decided here: a member follows the owner that rendezvous names;
an owner follows only who can show updates that lead on from its own state.
"""

import math
from functools import partial
from typing import Any

import trio

from legion_p2p.core.announcement import Mark, peer_of, unpack_marks
from legion_p2p.core.chain import Chain, Step
from legion_p2p.core.identity import PeerId, verify
from legion_p2p.core.membership import Liveness
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.wire import (
    OTHER,
    UNKNOWN,
    AncestryQuery,
    AncestryReply,
    Busy,
    GetShard,
    GetUpdates,
    Held,
    Reply,
    ShardState,
    State,
    Update,
    UpdateHeader,
    Updates,
    decode_header,
)
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    IncompatibleModelError,
    NetworkError,
    RefusedError,
)
from legion_p2p.services.shards.replica import Replica, advance
from legion_p2p.services.shards.states import Holding, log_bytes
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState

TRANSFER_DEADLINE_S = 120.0  # one shard is at most 32 MiB: 2.2 Mbit/s suffice
CLAIM_DEADLINE_S = 2.0  # for a member that only says it is ahead to prove it: meanwhile the round waits
MAX_CLAIM_PAUSE_S = 60.0  # between two looks at what a member claims whose claims come to nothing
SETTLE_IN_S = 1.0  # between two attempts to fetch what a region has that this peer moves to
MAX_BUSY_ANSWERS = 60  # in a row, to one question: a minute and more
MAX_CLAIMS = 4096  # such pairs of member and shard that are remembered
MAX_VERSION_JUMP = 1 << 24  # half a year of a version a second: who claims more would soon have used up all numbers


class Following(Holding):
    """Follows updates; fetches what is missing; serves those who fetch."""

    async def _on_update(self, peer: PeerId, message: Update) -> Held:
        header = self._open_update(peer, message)
        replica = self.replica(header.shard)
        if header.owner != peer:
            raise DecodeError(f"update of {header.owner} sent by {peer}")
        self._must_be_member(peer)
        if not self._may_make(replica, peer):
            raise NetworkError(f"shard {header.shard}: {peer} does not own it, as far as I know")
        # The lock is granted in order of arrival, so updates that came in order are judged in order.
        step = await self._apply(replica, header, message)
        if step is Step.BEHIND or (step is Step.FORKED and peer == self.ownership(replica.shard).owner):
            replica.sync_from = peer
            replica.notify.notify()
        return Held(replica.chain.version, replica.chain.digest)

    def _open_update(self, sender: PeerId, message: Update) -> UpdateHeader:
        header = decode_header(message.header)
        if header.run != self.run:
            raise IncompatibleModelError(f"update of run {header.run}, this is {self.run}")
        if header.codec not in self.spec.round.allowed_update_codecs():
            allowed = ", ".join(self.spec.round.allowed_update_codecs())
            raise CodecError(f"update of {header.owner} in codec {header.codec!r}, this run allows {allowed}")
        verify(header.owner, message.header, message.signature)
        return header

    async def _apply(self, replica: Replica, header: UpdateHeader, update: Update) -> Step:
        """Apply an update if it still fits; what it turned out to be."""
        async with replica.lock:
            step = replica.chain.judge(header)
            if step is not Step.APPLY:
                return step
            made, digest_ = await self.compute(
                replica.numel, advance, replica.reference, update.payload, self.codec_of(replica, header.codec)
            )
            if digest_ != header.digest:
                raise DecodeError(f"shard {replica.shard} version {header.version}: the update does not lead to its digest")
            self._accept(replica, header, update, made)
            if header.owner != self.me:
                replica.made_tokens = 0
                replica.pace.closed((), trio.current_time())
        self._note_round(header, header.version)
        return step

    def _look_for_news(self) -> None:
        """Compare announced marks with ours; whoever is to be followed and differs is asked."""
        owners = {shard: self.ownership(shard).owner for shard in self.replicas}
        if self.me in owners.values():
            announcements = self._members.everyone()
        else:
            announcements = [a for peer in sorted({o for o in owners.values() if o}) if (a := self._members.announced(peer))]
        for announcement in announcements:
            peer = peer_of(announcement)
            if peer == self.me or not announcement.ready or announcement.region != self.region:
                continue
            marks = unpack_marks(announcement.marks)
            if len(marks) != self.plan.n_shards:
                continue
            for shard, replica in self.replicas.items():
                if owners[shard] in (peer, self.me) and self._is_news(replica, peer, marks[shard]):
                    self._follow(replica, peer)

    def _is_news(self, replica: Replica, peer: PeerId, mark: Mark) -> bool:
        """`peer` owns the shard; or this peer does, which may have been away, or taken over, and is behind its members."""
        ahead = mark.version > replica.chain.version
        if self.ownership(replica.shard).owner == self.me:
            return ahead
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
                    nursery.start_soon(self._sync_patiently, replica, owner)

    async def adopt_region(self) -> None:
        """After a move: take over every shard as the new region has it, if anybody there does. What was trained goes there."""
        before = {shard: replica.chain for shard, replica in self.replicas.items()}
        for replica in self.replicas.values():
            replica.made_tokens = 0  # that is in the copy of the region that was left, and stays there
        waiting = set(before)
        while waiting and any(self.ownership(shard).owner is not None for shard in waiting):
            async with trio.open_nursery() as nursery:
                for shard in waiting:
                    owner = self.ownership(shard).owner
                    if owner is not None:
                        nursery.start_soon(self._sync_patiently, self.replicas[shard], owner)
            waiting = {shard for shard in waiting if self._is_still_at(self.replicas[shard], before[shard])}
            if waiting:
                with trio.move_on_after(SETTLE_IN_S):
                    await self._members.changed.wait()
        for shard, replica in self.replicas.items():
            if shard in waiting:
                continue
            async with replica.lock:
                replica.owner_residual, replica.outer = None, OuterState()
                if replica.pending is not None:
                    replica.pending.version = replica.chain.version
                    replica.pending.holder = replica.pending.redirect = None
            replica.notify.notify()

    def _is_still_at(self, replica: Replica, chain: Chain) -> bool:
        """Neither is it on another chain than before, nor is that one the owner's as well."""
        owner = self.ownership(replica.shard).owner
        if replica.chain is not chain or owner is None:
            return False
        announced = self._members.table.get(owner)
        marks = unpack_marks(announced.announcement.marks) if announced is not None else ()
        return len(marks) != self.plan.n_shards or replica.chain.holds(marks[replica.shard]) is not True

    async def sync_with(self, shard: int, peer: PeerId) -> None:
        """Take over what `peer` holds of a shard, whoever made it: for who knows whom to believe."""
        await self._sync_patiently(self.replicas[shard], peer, trusted=True)

    async def _sync_patiently(self, replica: Replica, peer: PeerId, **how: Any) -> None:
        """`_sync`, again and again while `peer` is busy."""
        for _ in range(MAX_BUSY_ANSWERS):
            retry_s = await self._sync(replica, peer, **how)
            if retry_s is None:
                return
            await trio.sleep(retry_s * self._rng.uniform(1.0, 1.5))  # not all who wait come at the same moment

    async def _sync(
        self,
        replica: Replica,
        peer: PeerId,
        *,
        log_only: bool = False,
        trusted: bool = False,
        within_s: float = CLAIM_DEADLINE_S,
    ) -> float | None:
        """Fetch from `peer` what is missing here: updates, or where these do not reach and it is allowed, the whole shard.

        From a member that only says that it is ahead, nothing but updates of those whose versions are to be followed, and only
        `within_s`. Returns when to come again, if `peer` is busy.
        """
        trusted = trusted or self._may_make(replica, peer) or self._holds_what_most_hold(replica, peer)
        before = (replica.chain.version, replica.chain.digest)
        request = GetUpdates(self.run, replica.shard, *before, log_only or not trusted)
        waited_for = self.ownership(replica.shard).owner == self.me
        try:
            async with self._urgent if waited_for else self._transfers:
                with trio.fail_after(TRANSFER_DEADLINE_S if trusted else within_s):
                    reply = await self._ask(peer, request, Priority.ROUND if waited_for else Priority.CATCH_UP)
            if isinstance(reply, Updates):
                for update in reply.updates:
                    header = self._open_update(peer, update)
                    if header.shard != replica.shard:
                        raise DecodeError(f"asked for updates of shard {replica.shard}, got one of {header.shard}")
                    if not trusted and not self._may_make(replica, PeerId(header.owner)):
                        break
                    if await self._apply(replica, header, update) not in (Step.APPLY, Step.KNOWN):
                        break
            elif isinstance(reply, Busy):
                self._fruitless[peer, replica.shard] = (trio.current_time() + reply.retry_ms / 1000, 0.0)
                return reply.retry_ms / 1000
            elif isinstance(reply, ShardState) and not request.log_only:
                await self._adopt(replica, peer, reply)
            else:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got {type(reply).__name__}")
        except RefusedError:
            pass  # it has nothing for us; its next announcement will tell
        except NetworkError as failed:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(failed))
            return None  # whether it lives is decided elsewhere
        except trio.TooSlowError:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason="no answer in time")
        except (DecodeError, IncompatibleModelError) as bad:
            self._messenger.report(peer, f"bad state of shard {replica.shard}: {bad}")
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        self._note_sync(replica, peer, trusted, came_forward=before != (replica.chain.version, replica.chain.digest))
        return None

    def _follow(self, replica: Replica, peer: PeerId) -> None:
        """`peer` says that it is ahead: ask it, unless what it said before came to nothing a moment ago."""
        not_before, _ = self._fruitless.get((peer, replica.shard), (-math.inf, 0.0))
        if trio.current_time() >= not_before:
            replica.sync_from = peer
            replica.notify.notify()

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
        theirs = await self.compute(replica.numel, codec.get("fp32").decode, state.payload, replica.numel)
        if await self.compute(replica.numel, digest, theirs) != state.digest:
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
            replica.chain = Chain(state.version, state.digest, log_bytes(replica.numel), state.included, peer)
            replica.next_seq = max(replica.next_seq, 1 + replica.chain.newest(self.me))
            if replica.round is not None:
                replica.round.advanced(state.version, state.included)
            self._mailbox.post(replica.shard, state.version, theirs)
            self._settle_if_included(replica)
            self.on_replaced(replica)
        self._events.emit("shard.fetched", shard=replica.shard, version=state.version, peer=peer)

    async def _on_get_updates(self, peer: PeerId, message: GetUpdates) -> Reply | ThrottledReply:
        replica = self.replica(message.shard)

        async def answer() -> Reply:
            async with replica.lock:  # a round that closes now should be in the answer
                updates = None if whole else replica.chain.since(message.version, message.digest)
                if replica.round is not None and self._trains_here(peer):
                    replica.held[peer] = replica.chain.version
                if updates is not None:
                    return Updates(updates, message.version)
                if message.log_only:
                    return Updates((), None)
            return await self._state(replica, replica.chain.passed(message.version, message.digest))

        n_bytes = replica.chain.bytes_since(message.version, message.digest)
        members = self._members_here()
        first = peer == self.ownership(replica.shard).owner or peer in replica.chain.first(members)
        spare = peer in members and not first  # whoever lives on what is left over takes what is fewest bytes
        whole = not message.log_only and (n_bytes is None or (spare and n_bytes > 4 * replica.numel))
        if whole or n_bytes is None:
            n_bytes = 4 * replica.numel if whole else 0
        priority = Priority.ROUND if first else self._priority_of(peer)
        return await self.upload_slots.give(peer, n_bytes, answer, priority)

    async def _on_get_shard(self, peer: PeerId, message: GetShard) -> Reply | ThrottledReply:
        replica = self.replica(message.shard)
        return await self.upload_slots.give(
            peer, 4 * replica.numel, partial(self._state, replica, ancestor=False), self._priority_of(peer)
        )

    def _on_compare(self, message: AncestryQuery) -> AncestryReply:
        return AncestryReply(tuple(self._bytes_since(state) for state in message.states))

    def _bytes_since(self, state: State) -> int:
        chain = self.replica(state.shard).chain
        n_bytes = chain.bytes_since(state.version, state.digest)
        if n_bytes is not None:
            return n_bytes
        return OTHER if chain.passed_otherwise(state.version, state.digest) else UNKNOWN

    def _priority_of(self, peer: PeerId) -> Priority:
        return Priority.CATCH_UP if self._trains_here(peer) else Priority.DOWNLOAD

    def _trains_here(self, peer: PeerId) -> bool:
        member = self._members.table.get(peer)
        return member is not None and member.announcement.ready and member.liveness is not Liveness.DEAD

    async def _state(self, replica: Replica, ancestor: bool) -> ShardState:
        async with replica.lock:
            reference, chain = replica.reference, replica.chain
            version, digest_, included = chain.version, chain.digest, chain.included()
        payload = await self.compute(replica.numel, codec.get("fp32").encode, reference)
        return ShardState(replica.shard, version, digest_, included, payload, ancestor)
