"""Publishes what this peer says of itself: regularly, at once where others act on a change, and a last time when it leaves."""

from collections.abc import Callable

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.run import announce_topic
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.own import OwnAnnouncement


class Announcer:
    """Publishes by gossip."""

    def __init__(
        self, ctx: PeerContext, own: OwnAnnouncement, period_s: Callable[[], float], note_change: Callable[[], None]
    ) -> None:
        """`period_s`: between two announcements, as things are now. `note_change` is called where this peer announces a change
        soon."""
        self._topic = announce_topic(ctx.run)
        self._gossip = ctx.gossip
        self._rng = ctx.rng
        self._own = own
        self._period_s = period_s
        self._note_change = note_change
        self._hurry = Notify()
        self._hurried = False

    def announce_soon(self) -> None:
        """Announce at once instead of at the next regular time: something changed that others act on."""
        self._hurried = True
        self._own.expire()
        self._hurry.notify()
        self._note_change()

    async def announce_now(self) -> None:
        self._own.renew()
        await self.publish(self._own.signed)

    async def publish(self, signed: bytes) -> None:
        await self._gossip.publish(self._topic, signed)

    async def announce_regularly(self, before_each: Callable[[], None]) -> None:
        """`before_each` is called before each announcement."""
        while True:
            self._hurried = False
            before_each()
            await self.announce_now()
            with trio.move_on_after(self._period_s() * self._rng.uniform(0.85, 1.0)):
                if not self._hurried:
                    await self._hurry.wait()
