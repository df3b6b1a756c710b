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
MAX_PERIODS = 5  # times the shortest announcement period, between two exchanges: gossip's losses are healed within a minute
N_ASKED = 2  # members of its region that a newcomer asks for the others
SHARE_HERE = 0.75  # of exchanges that are with a member of this peer's region; the others keep regions connected
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
        known = self._signed.news_for(peer, message.region, KnownMembers(message.known), MAX_EXCHANGED - 1)
        self._take_all(peer, message.announcements)
        self._access.must_be_admitted(peer)
        self._heard(peer)
        newest = self._signed.get(peer)
        if newest is not None and newest not in message.announcements:
            known = (*known[: MAX_EXCHANGED - 1], newest)  # from an earlier life, with a clock ahead: it has to outbid that
        return Exchanged(known)

    async def exchange_with(self, peer: PeerId) -> bool:
        """Swap what is known of members with `peer`: it answers with what is news here; False if it did not answer."""
        try:
            reply = await self._rpc.ask(peer, self.question(), within_s=EXCHANGE_DEADLINE_S)
        except NetworkError:
            return False
        self._take_all(peer, reply.announcements)
        self._heard(peer)
        return True

    async def exchange_regularly(self, period_s: Callable[[], float]) -> None:
        """With a random member, about once in a period, and in MAX_PERIODS of the shortest."""
        while True:
            longest_s = MAX_PERIODS * self._table.config.announce_s
            await trio.sleep(min(period_s(), longest_s) * self._rng.uniform(1.0, 2.0))
            here = self._table.here()
            asked = here if here and self._rng.random() < SHARE_HERE else self._table.counted()
            if asked:
                await self.exchange_with(self._rng.choice(asked).peer_id)

    async def ask_region(self) -> None:
        """Ask a few members of this peer's region for the others, one by one: the first may be as new as this peer."""
        n_answers = 0
        for member in self._table.here():
            n_answers += await self.exchange_with(member.peer_id)
            if n_answers == N_ASKED:
                break

    async def meet_again(self, peer: PeerId) -> None:
        """It is connected again after this machine had no network, and gossip takes some seconds more."""
        if self._table.get(peer) is not None:
            async with self._meetings:
                await self.exchange_with(peer)

    def question(self) -> Exchange:
        """This peer's announcement, for what is news here."""
        self._own.now()
        known = pack_known(self._signed.known()[:MAX_KNOWN_MEMBERS])
        return Exchange(self._run, (self._own.signed,), known, self._table.region)
