"""Exchanges of announcements with one member at a time, which heal what gossip loses: each side gets what is news to it."""

from collections.abc import Callable, Sequence

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.known_members import KnownMembers, pack_known
from legion_p2p.core.membership import Membership
from legion_p2p.core.wire import MAX_EXCHANGED, MAX_KNOWN_MEMBERS, Exchange, Exchanged
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.access import AccessControl
from legion_p2p.services.membership.own import OwnAnnouncement
from legion_p2p.services.membership.signed import SignedAnnouncements
from legion_p2p.services.rpc import Rpc

EXCHANGE_DEADLINE_S = 5.0
PASSED_ON = 4  # announcements that go with the question of an exchange, this peer's own first: the answer brings what is news
MAX_MEETINGS = 8  # exchanges in flight after an outage: every member may be back in the same second


class Exchanger:
    """Asks for announcements, and answers with them."""

    def __init__(
        self,
        ctx: PeerContext,
        table: Membership,
        access: AccessControl,
        signed: SignedAnnouncements,
        own: OwnAnnouncement,
        take_all: Callable[[PeerId, Sequence[bytes]], None],
        heard: Callable[[PeerId], None],
    ) -> None:
        """`take_all`: checks what a member has sent, and puts it into the table. `heard`: told of each that sent something."""
        self._run = ctx.run
        self._rng = ctx.rng
        self._rpc = Rpc(ctx.messenger)  # which answers prove that a peer lives is decided here
        self._meetings = trio.CapacityLimiter(MAX_MEETINGS)
        self._table = table
        self._access = access
        self._signed = signed
        self._own = own
        self._take_all = take_all
        self._heard = heard

    def on_exchange(self, peer: PeerId, message: Exchange) -> Exchanged:
        # Before learning: the asker does not need back what it sent.
        known = self._signed.news_for(KnownMembers(message.known), self._signed_own(), peer, MAX_EXCHANGED - 1)
        self._take_all(peer, message.announcements)
        self._access.must_be_admitted(peer)
        self._heard(peer)
        newest = self._signed.get(peer)
        if newest is not None and newest not in message.announcements:
            known = (*known[: MAX_EXCHANGED - 1], newest)  # from an earlier life, with a clock ahead: it has to outbid that
        return Exchanged(known)

    async def exchange_with(self, peer: PeerId) -> bool:
        """Swap what is known of members with `peer`: it answers with what is news here; False if it did not answer."""
        question = self.question(self._signed.sample(self._signed_own(), peer, PASSED_ON))
        try:
            reply = await self._rpc.ask(peer, question, within_s=EXCHANGE_DEADLINE_S)
        except NetworkError:
            return False
        self._take_all(peer, reply.announcements)
        self._heard(peer)
        return True

    async def exchange_regularly(self, period_s: Callable[[], float]) -> None:
        """With a random member, about once in a period."""
        while True:
            await trio.sleep(period_s() * self._rng.uniform(1.0, 2.0))
            counted = self._table.counted()
            if counted:
                await self.exchange_with(self._rng.choice(counted).peer_id)

    async def meet_again(self, peer: PeerId) -> None:
        """It is connected again after this machine had no network, and gossip takes some seconds more."""
        if self._table.get(peer) is not None:
            async with self._meetings:
                await self.exchange_with(peer)

    def question(self, announcements: tuple[bytes, ...]) -> Exchange:
        """`announcements`, for what is news here."""
        return Exchange(self._run, announcements, pack_known(self._signed.known()[:MAX_KNOWN_MEMBERS]))

    def _signed_own(self) -> bytes:
        self._own.now()
        return self._own.signed
