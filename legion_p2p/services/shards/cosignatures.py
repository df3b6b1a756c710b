"""What a member looks for on an update before it applies it: the co-signatures of members that have computed updates again.

    verify = "strict"   the update has one; or most of the others hold it, or this peer finds it right itself
    verify = "late"     the updates before it have one, all but the last few (core/shard/provisional.py)

Who may sign is decided in core/cosigning.py.
"""

from typing import NoReturn

import trio

from legion_p2p.core.account import CountVerdict
from legion_p2p.core.announcement import mark_of
from legion_p2p.core.cosigning import BelievedCosigners, check_cosignature
from legion_p2p.core.evidence import open_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.provisional import WINDOW
from legion_p2p.core.wire import Cosignature, ShardState, SignedHeader, Update, UpdateHeader
from legion_p2p.errors import DecodeError, NetworkError, NotCosignedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import ShardStates
from legion_p2p.services.shards.witness import StandbyWatch


class Cosignatures:
    """Believes co-signatures, or computes again."""

    def __init__(self, ctx: PeerContext, states: ShardStates, news: ShardNews, watch: StandbyWatch) -> None:
        self._events = ctx.events
        self._states = states
        self._news = news
        self._watch = watch
        self._verify = ctx.spec.round.verify
        self._cosigners = BelievedCosigners()
        self._computing: set[int] = set()
        """Shards of which an update is being computed again."""

    async def must_be_shown(self, replica: Replica, header: UpdateHeader, update: Update) -> None:
        """The caller holds the lock. Raises: NotCosignedError; SignatureError."""
        if self._verify == "late":
            await self._must_be_shown_of_those_before(replica, header)
        if self._verify != "strict":
            return
        order = self._order(replica)
        if update.cosigner:
            check_cosignature(update.cosigner, update.header, update.cosignature)
            if update.cosigner != header.owner and update.cosigner in order:
                return
        if not order:
            return  # nobody could sign
        await self._news.hear(replica)
        if self._news.have_reached(replica, mark_of(header.version, header.digest)):
            return  # the others have looked at it
        allowed = ", ".join(order) or "nobody"
        self._refuse(replica, header, f"co-signed by {update.cosigner or 'nobody'}", f"may be by {allowed}")

    async def must_be_shown_of(self, replica: Replica, state: ShardState) -> None:
        """A whole shard: the update that led to it has a co-signature, or most others are in its version, or beyond.

        Others announce their versions rarely, so where rounds are short most are always said to be behind.

        Raises: NotCosignedError.
        """
        if self._verify != "strict" or self._led_to(replica, state):
            return
        await self._news.hear(replica)
        others = self._news.marks_of_others(replica)
        if others and not self._news.have_reached(replica, mark_of(state.version, state.digest)):
            raise NotCosignedError(f"shard {replica.shard}: most of {len(others)} others are not in this version {state.version}")

    def _led_to(self, replica: Replica, state: ShardState) -> bool:
        """Whether a co-signed update led to this state."""
        made = state.made_by
        if made is None:
            return False
        try:
            header = open_header(made.header, made.signature)
            check_cosignature(made.cosigner, made.header, made.cosignature)
        except DecodeError:  # the version will tell
            return False
        same = (header.run, header.shard, header.version, header.digest)
        is_of_it = same == (self._states.run, replica.shard, state.version, state.digest)
        return is_of_it and made.cosigner != header.owner and made.cosigner in self._order(replica)

    def _order(self, replica: Replica) -> tuple[PeerId, ...]:
        return self._cosigners.believed(replica.shard, self._states.cosigners(replica.shard), trio.current_time())

    def _refuse(self, replica: Replica, header: UpdateHeader, reason: str, allowed: str) -> NoReturn:
        self._events.emit("update.not_cosigned", shard=replica.shard, version=header.version, peer=header.owner, reason=reason)
        raise NotCosignedError(f"shard {replica.shard} version {header.version}: {reason}, {allowed}")

    # of versions that have been applied

    def take_in(self, replica: Replica, header: UpdateHeader) -> None:
        """The co-signatures that an update shows on those before it. The caller holds the lock."""
        for shown in () if header.account is None else header.account.cosigned:
            self._take_in(replica, header, shown)

    async def _must_be_shown_of_those_before(self, replica: Replica, header: UpdateHeader) -> None:
        """Raises: NotCosignedError, where too many lack one."""
        lacking = replica.provisional.lacks(PeerId(header.owner))
        if lacking is None:
            return
        await self._news.hear(replica)
        if not self._news.have_reached(replica, mark_of(header.version, header.digest)):
            self._refuse(replica, header, f"version {lacking} is not co-signed", f"may be {WINDOW} versions late")

    def _take_in(self, replica: Replica, header: UpdateHeader, shown: Cosignature) -> None:
        made = replica.chain.provisional_header(shown.version)
        if made is None or shown.cosigner == header.owner or replica.provisional.maker != header.owner:
            return
        try:
            check_cosignature(shown.cosigner, made.header, shown.signature)
        except DecodeError:  # as good as none
            return
        if shown.cosigner in self._order(replica):
            replica.provisional.sign(shown.version)
        elif self._states.nursery is not None:  # it may have left; its owner has the inputs still
            self._states.nursery.start_soon(self._look_at, replica, shown.version, made)

    async def _look_at(self, replica: Replica, version: int, made: SignedHeader) -> None:
        """Compute a version again that somebody has signed whom this peer does not believe."""
        if await self._finds_right(replica, open_header(made.header, made.signature), made):
            async with replica.lock:
                if replica.chain.provisional_header(version) == made:
                    replica.provisional.sign(version)

    # computing again

    async def computes_the_same(self, replica: Replica, header: UpdateHeader, update: Update) -> bool:
        """Whether this peer, computing an update again that lacks a co-signature, finds it right. Its co-signer may have left, or
        have been excluded, before this peer heard of it: nobody else would ever sign it."""
        shown = SignedHeader(update.header, update.signature)
        return self._verify == "strict" and await self._finds_right(replica, header, shown)

    async def _finds_right(self, replica: Replica, header: UpdateHeader, shown: SignedHeader) -> bool:
        """As a co-signer does, one update of a shard at a time."""
        if header.account is None or replica.shard in self._computing:
            return False
        self._computing.add(replica.shard)
        try:
            found = await self._watch.check(replica, header, shown)
        except NetworkError as failed:
            self._events.emit(
                "owner.unaccounted", shard=header.shard, version=header.version, owner=header.owner, reason=str(failed)
            )
            return False
        finally:
            self._computing.discard(replica.shard)
        return found.finding is not CountVerdict.WRONG
