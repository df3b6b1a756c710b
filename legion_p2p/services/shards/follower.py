"""Between a member and an owner: applying the updates that the owner published.

Whose updates are applied is decided in core/shard/belief.py; what a member has missed, it fetches (catch_up.py).
"""

from dataclasses import dataclass

from legion_p2p.core.chain import Step
from legion_p2p.core.evidence import open_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Liveness
from legion_p2p.core.observers import Observers
from legion_p2p.core.shard import follower_events
from legion_p2p.core.shard.belief import differs_from_most, may_make
from legion_p2p.core.wire import Held, Update, UpdateHeader
from legion_p2p.errors import (
    CodecError,
    DecodeError,
    IncompatibleModelError,
    NetworkError,
    NotCosignedError,
    TooLongError,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.cosignatures import Cosignatures
from legion_p2p.services.shards.inputs import payload_digest
from legion_p2p.services.shards.made_once import advance_once
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.replica import Replica, advance
from legion_p2p.services.shards.states import ShardStates
from legion_p2p.services.shards.taking_back import REPLACED, TakeBackService


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
    """Applies the updates of every shard's owner."""

    def __init__(
        self, ctx: PeerContext, states: ShardStates, news: ShardNews, cosignatures: Cosignatures, taking_back: TakeBackService
    ) -> None:
        self._messenger = ctx.messenger
        self._events = ctx.events
        self._states = states
        self._news = news
        self._cosignatures = cosignatures
        self._taking_back = taking_back
        self.contradicted: Observers[tuple[Update, Update]] = Observers()
        """Told of an update that does not fit, and of the one of that version that is held here."""
        self.received: Observers[ReceivedUpdate] = Observers()
        """Told of each update that is what its owner made, before it is applied; of one that was asked for, after that."""
        self.altered: Observers[AlteredUpdate] = Observers()
        """Told of each that is not what its owner made."""
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
            step = await self.apply(replica, header, message)
        except DecodeError as bad:
            if maker == peer:
                raise
            self._messenger.report(maker, f"bad update: {bad}")  # it signed the digest of these very bytes
            raise NetworkError(f"update of {maker}: {bad}") from bad
        if step is Step.BEHIND or (step is Step.FORKED and maker == self._states.ownership(replica.shard).owner):
            self._news.tell(replica, follower_events.Shown(peer if step is Step.BEHIND else maker, proved=True))
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

    async def apply(
        self, replica: Replica, header: UpdateHeader, update: Update, *,
        is_common: bool = False, is_vouched: bool = False, is_followed: bool = False,
    ) -> Step:  # fmt: skip
        """Apply an update if it still fits, or replaces what may be taken back; what it turned out to be. `is_common`: most
        members hold what it leads to. `is_vouched`: the caller knows that it is right. `is_followed`: it is on the way to what
        the owner holds, or most members.

        Raises: DecodeError; TooLongError, where it is far longer than those before it; NotCosignedError.
        """
        try:
            return await self._apply(replica, header, update, is_common, is_vouched, is_followed)
        except NotCosignedError:
            if not await self._cosignatures.computes_the_same(replica, header, update):
                raise
        return await self._apply(replica, header, update, is_common, True, is_followed)

    async def _apply(
        self, replica: Replica, header: UpdateHeader, update: Update, is_common: bool, is_vouched: bool, is_followed: bool
    ) -> Step:
        async with replica.lock:
            owns = header.owner == self._states.ownership(replica.shard).owner
            step = replica.provisional.judge(header, is_owners=owns or is_followed)
            if step is not Step.APPLY:
                held = replica.chain.entry(header.version) if step in (Step.FORKED, Step.REPLACES) else None
                if held is not None:
                    self.contradicted.tell((held.update, update))
                if step is not Step.REPLACES:
                    return step
                await self._taking_back.return_to(replica, header.version - 1, REPLACED)
                step = Step.APPLY
            self._cosignatures.take_in(replica, header)
            if not is_vouched:
                await self._cosignatures.must_be_shown(replica, header, update)
            if not is_common and not await self._counts_right(replica, header):
                raise DecodeError(f"shard {replica.shard} version {header.version}: its salt or rounds do not follow")
            codec = self._states.codec_of(replica, header.codec)
            if self._states.computes_at_once(replica.numel):
                name = payload_digest(update.payload)
                made, digest_, norm = advance_once(replica.chain.digest, name, replica.reference, update.payload, codec)
            else:
                made, digest_, norm = await self._states.compute(replica.numel, advance, replica.reference, update.payload, codec)
            if digest_ != header.digest:
                raise DecodeError(f"shard {replica.shard} version {header.version}: the update does not lead to its digest")
            if not is_common:
                await self.must_not_be_longer(replica, header.owner, norm, replica.norms.longest)
            common = await self._states.to_hold(made)
            await self._taking_back.included_again(replica, header)
            self._states.accept(replica, header, await self._states.shelved(update, replica.numel), common, norm)
        return step

    async def _counts_right(self, replica: Replica, header: UpdateHeader) -> bool:
        """Unless most of the others have gone on: then it is this peer that was told something wrong when it came."""
        if replica.chain.counts_right(header, self._states.spec.round.owner_rounds):
            return True
        await self._news.hear(replica)
        return self._news.have_gone_on(replica)

    async def must_not_be_longer(self, replica: Replica, owner: str, norm: float, longest: float | None) -> None:
        """Raises: TooLongError."""
        if longest is None or norm <= longest or not self._states.bounds_updates:
            return
        await self._news.hear(replica)
        if not differs_from_most(replica.chain, self._news.marks_of_others(replica)):
            self._events.emit("update.too_long", shard=replica.shard, version=replica.chain.version + 1, owner=owner)
            raise TooLongError(f"shard {replica.shard}: a change of {norm:.3g}, those before it allow {longest:.3g}")

    def may_make(self, replica: Replica, peer: PeerId) -> bool:
        """Whether versions that `peer` made are followed."""
        if peer in self._states.members.proofs.book.excluded():
            return False  # it would go on where its last one was taken back
        owners = self._states.ownership(replica.shard)
        owner = None if owners.owner is None else self._states.members.table.get(owners.owner)
        is_alive = owner is not None and owner.liveness is Liveness.ALIVE
        return may_make(self._states.me, peer, owners, replica.chain.owner, is_alive)
