"""Between a member and an owner: taking over what the owner published, and catching up with what was missed.

Which peers to believe is decided in core/shard/follower.py.
"""

import random
from dataclasses import dataclass
from itertools import chain

import trio

from legion_p2p.core.announcement import Mark, mark_at
from legion_p2p.core.chain import Step
from legion_p2p.core.evidence import open_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Liveness
from legion_p2p.core.observers import Observers
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import follower_events, push_events
from legion_p2p.core.shard.follower import Adoption, differs_from_most, is_behind_most, judge_whole, may_make, most_hold
from legion_p2p.core.wire import Busy, GetUpdates, Held, ShardState, Update, UpdateHeader, Updates
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    IncompatibleModelError,
    NetworkError,
    NoAnswerError,
    RefusedError,
    RemoteProtocolError,
    TooLongError,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.inputs import payload_digest
from legion_p2p.services.shards.replica import Replica, advance
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState

CLAIM_DEADLINE_S = 2.0  # for a member that only says it is ahead to prove it: meanwhile the round waits
ADOPT_S = 1.0  # between two attempts to fetch what a region has that this peer moves to
MAX_MISSED = 256  # versions for which a whole shard may differ: a made-up version number allows no more
MAX_BUSY_ANSWERS = 60  # in a row, to one question: a minute and more


@dataclass(frozen=True, eq=False)
class ReceivedUpdate:
    """An update of another owner that came here."""

    replica: Replica
    header: UpdateHeader
    update: Update
    sender: PeerId | None
    """None: this peer had asked for it."""


@dataclass(frozen=True, eq=False)
class AlteredUpdate:
    """What a member sent in the place of an update."""

    replica: Replica
    sender: PeerId


class FollowService:
    """Follows updates, and fetches what is missing."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._rng: random.Random = ctx.rng
        self._states = states
        self.contradicted: Observers[tuple[Update, Update]] = Observers()
        """Told of an update that does not fit, and of the one of that version that is held here."""
        self.received: Observers[ReceivedUpdate] = Observers()
        """Told of each update that is what its owner made, before it is applied; of one that was asked for, after that."""
        self.altered: Observers[AlteredUpdate] = Observers()
        """Told of each that is not what its owner made."""
        self._restless: set[int] = set()
        """Shards of which another member claims to have a newer version, or did a moment ago."""
        self._allowed_codecs = ctx.spec.round.allowed_update_codecs()

    # what others send

    async def on_update(self, peer: PeerId, message: Update) -> Held:
        """Take over an update. Raises: LegionError, to be sent back."""
        header = self.open_update(message)
        replica, maker = self._states.replica(header.shard), PeerId(header.owner)
        self._states.must_be_member(peer)
        if not self.may_make(replica, maker):
            raise NetworkError(f"shard {header.shard}: {maker} does not own it, as far as I know")
        await self._check_bytes(replica, header, message, peer)
        self.received.tell(ReceivedUpdate(replica, header, message, peer))
        # The lock is granted in order of arrival, so updates that came in order are judged in order.
        try:
            step = await self._apply(replica, header, message)
        except DecodeError as bad:
            if maker == peer:
                raise
            self._messenger.report(maker, f"bad update: {bad}")  # it signed the digest of these very bytes
            raise NetworkError(f"update of {maker}: {bad}") from bad
        if step is Step.BEHIND or (step is Step.FORKED and maker == self._states.ownership(replica.shard).owner):
            self._tell(replica, follower_events.Shown(peer if step is Step.BEHIND else maker, proved=True))
        return Held(replica.chain.version, replica.chain.digest)

    async def _check_bytes(self, replica: Replica, header: UpdateHeader, update: Update, sender: PeerId) -> None:
        """Raises: DecodeError, where they are not those that the owner signed. The sender is to blame: it should look before it
        passes anything on."""
        if not header.payload and header.owner == sender:
            return  # of an older version; applying it shows whether it is right
        if header.payload != await self._states.compute(replica.numel, payload_digest, update.payload):
            self.altered.tell(AlteredUpdate(replica, sender))
            raise DecodeError(f"update of {header.owner} sent by {sender}: the bytes are not those that its owner signed")

    def open_update(self, message: Update) -> UpdateHeader:
        """Its header, checked. Raises: DecodeError, IncompatibleModelError."""
        header = open_header(message.header, message.signature)
        if header.run != self._states.run:
            raise IncompatibleModelError(f"update of run {header.run}, this is {self._states.run}")
        if header.codec not in self._allowed_codecs:
            allowed = ", ".join(self._allowed_codecs)
            raise CodecError(f"update of {header.owner} in codec {header.codec!r}, this run allows {allowed}")
        return header

    async def _apply(self, replica: Replica, header: UpdateHeader, update: Update, *, is_common: bool = False) -> Step:
        """Apply an update if it still fits; what it turned out to be. `is_common`: most members hold what it leads to.

        Raises: DecodeError; TooLongError, where it is far longer than those before it.
        """
        async with replica.lock:
            step = replica.chain.judge(header)
            if step is not Step.APPLY:
                held = replica.chain.entry(header.version) if step is Step.FORKED else None
                if held is not None:
                    self.contradicted.tell((held.update, update))
                return step
            made, digest_, norm = await self._states.compute(
                replica.numel, advance, replica.reference, update.payload, self._states.codec_of(replica, header.codec)
            )
            if digest_ != header.digest:
                raise DecodeError(f"shard {replica.shard} version {header.version}: the update does not lead to its digest")
            if not is_common:
                self._must_not_be_longer(replica, header.owner, norm, replica.norms.longest)
            common = await self._states.to_hold(made)
            self._states.accept(replica, header, await self._states.shelved(update, replica.numel), common, norm)
        return step

    def _must_not_be_longer(self, replica: Replica, owner: str, norm: float, longest: float | None) -> None:
        """Raises: TooLongError."""
        if longest is None or norm <= longest or not self._states.bounds_updates:
            return
        if not differs_from_most(replica.chain, self._marks_of_others(replica)):
            self._events.emit("update.too_long", shard=replica.shard, version=replica.chain.version + 1, owner=owner)
            raise TooLongError(f"shard {replica.shard}: a change of {norm:.3g}, those before it allow {longest:.3g}")

    # news

    def heard_of(self, peer: PeerId) -> None:
        """A member announced something: look at the shards that it owns, and at those that this peer owns."""
        states = self._states
        if not self._restless and states.says_what_we_hold(peer):
            return  # as most announcements do
        mine, theirs = states.owned(), states.owned_by(peer)
        if (mine or theirs) and peer != states.me:
            marks = self._marks_of(peer)
            is_news = marks != states.marks()  # most say what all hold: then a run of many shards costs what one of few does
            for shard in chain(mine, theirs) if is_news else self._restless.intersection(chain(mine, theirs)):
                replica = states.replicas[shard]
                if shard in self._restless or not states.is_at_our_mark(marks, shard):
                    self._note(replica, peer, mark_at(marks, shard))

    def look_at(self, replica: Replica) -> None:
        """The shard changed hands: look at what those announced that count from now on."""
        states = self._states
        owner = states.ownership(replica.shard).owner
        peers = states.members.roster.ready(states.region) if owner == states.me else () if owner is None else (owner,)
        for peer in peers:
            self._note(replica, peer, mark_at(self._marks_of(peer), replica.shard))

    def is_said_to_be_ahead(self, replica: Replica, peer: PeerId) -> bool:
        mark = mark_at(self._marks_of(peer), replica.shard)
        return mark is not None and mark.version > replica.chain.version

    def is_behind_most(self, replica: Replica) -> bool:
        """Most of the others have a newer version of the shard."""
        return is_behind_most(replica.chain, self._marks_of_others(replica))

    def _marks_of_others(self, replica: Replica) -> list[Mark | None]:
        """What the members that hold the model announce of the shard, this peer and the owner not counted."""
        states = self._states
        left_out = (states.me, states.ownership(replica.shard).owner)
        return [
            mark_at(self._marks_of(peer), replica.shard)
            for peer in states.members.roster.ready(states.region)
            if peer not in left_out
        ]

    def _marks_of(self, peer: PeerId) -> bytes:
        """Of all shards, packed, as a member of this region announces them; empty where it says nothing that counts."""
        announced = self._states.members.roster.announced(peer)
        if announced is None or not announced.ready or announced.region != self._states.region:
            return b""
        return announced.marks if len(announced.marks) == self._states.n_mark_bytes else b""

    # catching up

    async def sync_all(self) -> None:
        """Fetch what is missing here of every shard from its owner, as far as it answers."""
        async with trio.open_nursery() as nursery:
            for shard, replica in self._states.replicas.items():
                owner = self._states.ownership(shard).owner
                if owner is not None and owner != self._states.me:
                    nursery.start_soon(self.fetch_patiently, replica, owner)

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
                        nursery.start_soon(self.fetch_patiently, states.replicas[shard], owner)
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

    def _is_still_at(self, replica: Replica, n_replaced: int) -> bool:
        """Neither is it on another chain than before, nor is that one the owner's as well."""
        owner = self._states.ownership(replica.shard).owner
        if replica.chain.n_replaced != n_replaced or owner is None:
            return False
        announced = self._states.members.table.get(owner)
        mark = None if announced is None else mark_at(announced.announcement.marks, replica.shard)
        return mark is None or replica.chain.holds(mark) is not True

    async def fetch_what_is_promised(self, replica: Replica, peer: PeerId, within_s: float | None) -> None:
        """`fetch`, of which it is known how long it may take at least."""
        await self.fetch(replica, peer, within_s=max(CLAIM_DEADLINE_S, within_s or 0.0))

    async def fetch_patiently(
        self, replica: Replica, peer: PeerId, *, log_only: bool = False, trusted: bool = False, within_s: float = CLAIM_DEADLINE_S
    ) -> None:
        """`fetch`, again and again while `peer` is busy."""
        self._tell(replica, follower_events.AskBegun(peer))
        try:
            for _ in range(MAX_BUSY_ANSWERS):
                retry_s = await self.fetch(replica, peer, log_only=log_only, trusted=trusted, within_s=within_s)
                if retry_s is None:
                    return
                await trio.sleep(retry_s * self._rng.uniform(1.0, 1.5))  # so that not all that wait come at the same moment
        finally:
            self._tell(replica, follower_events.AskEnded(peer))

    async def fetch(
        self, replica: Replica, peer: PeerId, *, log_only: bool = False, trusted: bool = False, within_s: float = CLAIM_DEADLINE_S
    ) -> float | None:
        """Fetch from `peer` what is missing here: updates, or where these do not reach and it is allowed, the whole shard.

        From a member that only says that it is ahead, nothing but updates of those whose versions are to be followed, and only
        `within_s`. From one that announces what most announce, everything, within the time that a slow link takes: identities
        cost nothing, so a majority may be silent liars. Returns when to come again, if `peer` is busy.
        """
        states = self._states
        known = trusted or self.may_make(replica, peer)
        is_held = self._holds_what_most_hold(replica, peer)
        is_common = trusted or is_held
        trusted = known or is_held
        if trusted:
            within_s = TRANSFER_DEADLINE_S if known else self._transfer_s(replica)
        before = (replica.chain.version, replica.chain.digest)
        request = GetUpdates(states.run, replica.shard, *before, log_only or not trusted)
        is_waited_for = states.ownership(replica.shard).owner == states.me
        priority = Priority.ROUND if is_waited_for else Priority.CATCH_UP
        try:
            async with states.urgent if is_waited_for else states.transfers:
                reply = await states.rpc.ask(peer, request, priority, within_s=within_s)
            if isinstance(reply, Busy):
                self._tell(replica, follower_events.TurnedAway(peer, reply.retry_ms / 1000))
                return reply.retry_ms / 1000
            if isinstance(reply, Updates):
                await self._take_updates(replica, reply, trusted, is_common)
            elif request.log_only:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got {type(reply).__name__}")
            else:
                await self._adopt(replica, peer, reply, is_common)
        except (RefusedError, TooLongError):
            pass  # it has nothing for us; what others announce will tell
        except NoAnswerError as late:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(late))
        except RemoteProtocolError as bad:
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        except NetworkError as failed:
            self._events.emit("shard.sync_failed", shard=replica.shard, peer=peer, reason=str(failed))
            self._tell(replica, follower_events.Unreachable(peer))
            return None
        except (DecodeError, IncompatibleModelError) as bad:
            self._messenger.report(peer, f"bad state of shard {replica.shard}: {bad}")
            self._events.error("shard.sync_refused", f"shard {replica.shard}: {bad}", peer=peer)
        came_forward = before != (replica.chain.version, replica.chain.digest)
        self._tell(replica, follower_events.FetchEnded(peer, came_forward, known))
        return None

    def _transfer_s(self, replica: Replica) -> float:
        """What the shard whole may take: the largest TRANSFER_DEADLINE_S."""
        return CLAIM_DEADLINE_S + TRANSFER_DEADLINE_S * replica.numel / MAX_SHARD_ELEMENTS

    async def _take_updates(self, replica: Replica, reply: Updates, trusted: bool, is_common: bool) -> None:
        if trusted:
            replica.norms.learn(reply.norms)
        for update in reply.updates:
            header = self.open_update(update)
            if header.shard != replica.shard:
                raise DecodeError(f"asked for updates of shard {replica.shard}, got one of {header.shard}")
            if not trusted and not self.may_make(replica, PeerId(header.owner)):
                break
            step = await self._apply(replica, header, update, is_common=is_common)
            if step not in (Step.APPLY, Step.KNOWN):
                break
            if step is Step.APPLY:
                self.received.tell(ReceivedUpdate(replica, header, update, None))

    def may_make(self, replica: Replica, peer: PeerId) -> bool:
        """Whether versions that `peer` made are followed."""
        owners = self._states.ownership(replica.shard)
        owner = None if owners.owner is None else self._states.members.table.get(owners.owner)
        is_alive = owner is not None and owner.liveness is Liveness.ALIVE
        return may_make(self._states.me, peer, owners, replica.chain.owner, is_alive)

    def _holds_what_most_hold(self, replica: Replica, peer: PeerId) -> bool:
        marks: list[Mark | None] = []
        of_peer: Mark | None = None
        for other in self._states.members.roster.ready(self._states.region):
            if other != self._states.me:
                marks.append(mark_at(self._marks_of(other), replica.shard))
                if other == peer:
                    of_peer = marks[-1]
        return most_hold(of_peer, marks)

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
            if adoption in (Adoption.OURS_PREVAILS, Adoption.KNOWN):
                return
            longest = replica.norms.longest
            if longest is not None and not is_common:
                n_missed = min(max(1, state.version - replica.chain.version), MAX_MISSED)
                self._must_not_be_longer(replica, peer, float((replica.reference - theirs).norm()), longest * n_missed)
            replica.norms.replace(state.norms)
            owner = replica.life.owner
            if adoption is Adoption.MERGE:
                ours_ahead = theirs - replica.reference
                replica.residual = ours_ahead if replica.residual is None else replica.residual + ours_ahead
                replica.life.push.handle(push_events.Merged(owner.made_tokens), trio.current_time())
                self._events.emit("shard.merged", shard=replica.shard, tokens=owner.made_tokens, owner=peer)
            owner.made_tokens = 0
            replica.common = held = await self._states.to_hold(theirs)
            replica.chain.replaced(state.version, state.digest, peer, state.included)
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
            owns=replica.round is not None,
            made_tokens=replica.life.owner.made_tokens,
        )

    def _note(self, replica: Replica, peer: PeerId, mark: Mark | None) -> None:
        machine = replica.life.follower
        machine.handle(follower_events.Announced(peer, mark), trio.current_time())
        self._note_rest(replica)
        if machine.is_behind:  # most announcements say nothing new
            self._states.wake(replica)

    def _tell(self, replica: Replica, event: follower_events.Event) -> None:
        replica.life.follower.handle(event, trio.current_time())
        self._note_rest(replica)
        self._states.wake(replica)

    def _note_rest(self, replica: Replica) -> None:
        if replica.life.follower.is_at_rest:
            self._restless.discard(replica.shard)
        else:
            self._restless.add(replica.shard)
