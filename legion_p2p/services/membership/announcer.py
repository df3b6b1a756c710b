"""Publishes what this peer says of itself: regularly, at once where others act on a change, and a last time when it leaves.

To its region, and where it is an envoy (core/envoys.py) to the whole run, at another pace. One that has stopped being an
envoy says so to the run a few times. One that moves to another region says so in the one that it leaves.
"""

import math
from collections.abc import Callable

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.membership import Membership
from legion_p2p.core.run import announce_topic, region_topic
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.own import OwnAnnouncement

N_LAST_WORDS = 3  # of one that is no envoy any more: gossip may lose one
REGULARLY = 0.7  # of the time between two announcements, at least: those that came at once should not announce themselves at once
FAR_HASTE = 0.25  # of the time between two announcements to the run: how soon a change may be announced there


class Announcer:
    """Publishes by gossip."""

    def __init__(self, ctx: PeerContext, table: Membership, own: OwnAnnouncement, note_change: Callable[[], None]) -> None:
        """`note_change` is called where this peer announces a change soon."""
        self._run = ctx.run
        self._config = ctx.config.membership
        self._gossip = ctx.gossip
        self._rng = ctx.rng
        self._table = table
        self._own = own
        self._note_change = note_change
        self._hurry = Notify()
        self._hurried = False
        self._region = ""
        """To which it announced itself last."""
        self._far_at = -math.inf
        """When it last announced itself to the run."""
        self._n_last_words = 0
        """How often it is still to do so, although it is no envoy any more."""

    def announce_soon(self) -> None:
        """Announce at once instead of at the next regular time: something changed that others act on."""
        self._hurried = True
        self._own.expire()
        self._hurry.notify()
        self._note_change()

    async def announce_now(self) -> None:
        self._own.renew()
        await self.publish()

    async def publish(self, *, in_haste: bool = True) -> None:
        """Publish what this peer last said of itself. `in_haste`: because something has changed."""
        for topic in self._topics(in_haste):
            await self._gossip.publish(topic, self._own.signed)

    async def announce_regularly(self, before_each: Callable[[], None]) -> None:
        """`before_each` is called before each announcement."""
        while True:
            in_haste, self._hurried = self._hurried, False
            before_each()
            self._own.renew()
            await self.publish(in_haste=in_haste)
            with trio.move_on_after(self._config.announce_s * self._table.grown * self._rng.uniform(REGULARLY, 1.0)):
                if not self._hurried:
                    await self._hurry.wait()

    def _topics(self, in_haste: bool) -> list[str]:
        """Where to publish now."""
        own = self._own.now()
        regions = [region for region in dict.fromkeys((own.region, self._region)) if region]
        self._region = own.region
        topics = [region_topic(self._run, region) for region in regions]
        if (own.envoy or self._n_last_words) and (own.leaving or self._is_far_due(in_haste)):
            self._far_at = trio.current_time()
            self._n_last_words = N_LAST_WORDS if own.envoy else self._n_last_words - 1
            topics.append(announce_topic(self._run))
        return topics

    def _is_far_due(self, in_haste: bool) -> bool:
        grown = self._table.far_grown
        share = 0.0 if grown == 1 else FAR_HASTE if in_haste else REGULARLY
        return trio.current_time() >= self._far_at + share * grown * self._config.announce_s
