"""Being found, and finding: provider records for the run and for the shards that this peer owns, and a look for members unknown.

The DHT is slow and costs CPU on everybody's side, so ownership is advertised some seconds after it changed, in batches, and
members are looked up rarely: gossip and exchanges carry everything that is frequent.
"""

from collections.abc import Callable

import trio

from legion_p2p.core.contact import Contact
from legion_p2p.core.looks import LookPlan
from legion_p2p.core.rendezvous import shard_key
from legion_p2p.core.run import name_key, run_key
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.shards.service import ShardService

SETTLE_S = 2.0  # joins come in bursts: advertise once they are over, and not all members in the same second
LOOK_EVERY_S = 30.0  # while looks find somebody, or somebody is missed: core/looks.py
FIND_DEADLINE_S = 15.0
MAX_PROVIDES_AT_ONCE = 4


class AdvertiseService:
    """Keeps the DHT in step with what this peer owns."""

    def __init__(
        self,
        ctx: PeerContext,
        members: MemberService,
        shards: ShardService,
        more: Callable[[], set[str]] = set,
    ) -> None:
        """`more`: further keys under which this peer is to be found."""
        self._run = ctx.run
        self._name = ctx.spec.name
        self._discovery = ctx.discovery
        self._messenger = ctx.messenger
        self._members = members
        self._shards = shards
        self._events = ctx.events
        self._rng = ctx.rng
        self._more = more
        self._provided: set[str] = set()
        self._is_stale = trio.Event()
        members.roles_changed.add(lambda _: self.look_again())

    def look_again(self) -> None:
        """The keys under which this peer should be found may be others than before."""
        self._is_stale.set()

    async def run_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_members)
            while True:
                self._is_stale = trio.Event()
                await self._bring_up_to_date()
                await self._is_stale.wait()
                await trio.sleep(SETTLE_S * self._rng.uniform(0.5, 1.5))

    def wanted(self) -> set[str]:
        """The keys under which this peer should be found now."""
        keys = {run_key(self._run), name_key(self._name)} if self._speaks() else set()
        keys.update(shard_key(self._run, self._shards.region, shard) for shard in self._shards.owned())
        return keys | self._more()

    def _speaks(self) -> bool:
        """Whether this peer is to be found as a member of the run: in a large region envoys are, which know all the others."""
        own = self._members.own.now()
        return own.envoy or not any(a.envoy and a.region == own.region for a in self._members.roster.everyone())

    async def withdraw_all(self) -> None:
        """No longer be found under anything."""
        for key in sorted(self._provided):
            await self._discovery.withdraw(key)
        self._provided.clear()

    async def _bring_up_to_date(self) -> None:
        wanted = self.wanted()
        for key in sorted(self._provided - wanted):
            await self._discovery.withdraw(key)
            self._provided.discard(key)
        limiter = trio.CapacityLimiter(MAX_PROVIDES_AT_ONCE)

        async def provide(key: str) -> None:
            async with limiter:
                try:
                    await self._discovery.provide(key)
                except NetworkError as failed:
                    self._events.emit("advertise.failed", key=key, reason=str(failed))
            self._provided.add(key)

        # The run's own keys first: being found matters more than saying what one owns.
        run_keys = [key for key in sorted(wanted - self._provided) if not key.startswith("legion/shard/")]
        for batch in (run_keys, sorted(wanted - self._provided - set(run_keys))):
            async with trio.open_nursery() as nursery:
                for key in batch:
                    nursery.start_soon(provide, key)

    async def _look_for_members(self) -> None:
        plan = LookPlan(LOOK_EVERY_S)
        while True:
            await trio.sleep(plan.next_s() * self._rng.uniform(0.8, 1.2))
            if plan.is_due(misses=self._misses_somebody()):
                plan.looked(found=await self._look())

    def _misses_somebody(self) -> bool:
        table = self._members.table
        return table.n_counted == 0 or table.n_counted < table.n_members

    async def _look(self) -> bool:
        """Whether somebody was found that was unknown."""
        contacts: tuple[Contact, ...] = ()
        with trio.move_on_after(FIND_DEADLINE_S):
            try:
                contacts = await self._discovery.find(run_key(self._run))
            except NetworkError as failed:
                self._events.emit("look.failed", reason=str(failed))
        unknown = [contact for contact in contacts if not self._members.roster.is_known(contact.peer_id)]
        for contact in unknown:
            self._messenger.add_addresses(contact.peer_id, contact.addresses)
            await self._members.exchange_with(contact.peer_id)
        return bool(unknown)
