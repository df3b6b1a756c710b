"""Keeping the regions of a sharded run together: the owners of a unit in two regions sync it, as those of a shard do elsewhere.

What a unit moves by is subtracted by its owner and its standby with the next step (services/sharding/step_maker.py), so both hold
the same bytes. If the owner is gone before that, its region has not moved, and the other one has: they meet again at the next
sync.
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import GetRepresentative, RepresentativeFound, SyncReply, SyncRequest, Unknown
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.copies import Copy
from legion_p2p.services.inter_region.directory import RegionDirectory
from legion_p2p.services.inter_region.pairs import PairStates
from legion_p2p.services.inter_region.requester import SyncRequester
from legion_p2p.services.inter_region.responder import SyncResponder
from legion_p2p.services.inter_region.sync_parts import SyncParts
from legion_p2p.services.inter_region.sync_schedule import Schedule
from legion_p2p.services.inter_region.synced_units import SyncedUnits, UnitCopy
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.sharding.held import HeldUnit
from legion_p2p.services.sharding.service import UnitService


class UnitSync:
    """The syncs of one peer with other regions, about the units that it owns."""

    def __init__(self, ctx: PeerContext, members: MemberService, units: UnitService) -> None:
        self._units = units
        self._synced = SyncedUnits(ctx, members, units.table)
        self._pairs = PairStates(ctx.spec.round.moving_rate)
        self.directory = RegionDirectory(ctx, members)
        self.schedule = Schedule(ctx, members, self._synced, self._pairs, self.directory)
        self._parts = SyncParts(self._synced, self._pairs, self.schedule, ctx.events, ctx.rng, self._copy_of)
        self._responder = SyncResponder(ctx, members, self._parts)
        self._requester = SyncRequester(ctx, self._parts, self._responder)
        self._nursery: trio.Nursery | None = None
        units.owning.add(self._begin)

    async def run_forever(self) -> None:
        async with trio.open_nursery() as self._nursery:
            try:
                for held in self._units.table.held.values():
                    if held.is_owned:
                        self._begin(held)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def on_request(self, peer: PeerId, message: SyncRequest) -> SyncReply | Unknown:
        """Sync a unit with another region that asks for it. Raises: LegionError, to be sent back; then nothing has moved."""
        self._synced.replica(message.shard)
        await self.directory.look_up(message.region, message.shard, peer)
        return await self._responder.on_request(peer, message)

    async def on_get_representative(self, peer: PeerId, message: GetRepresentative) -> RepresentativeFound:
        """The owner of a unit in this peer's region. Raises: NetworkError."""
        return self.schedule.about(message)

    def _begin(self, held: HeldUnit) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._sync_while_owned, held)

    async def _sync_while_owned(self, held: HeldUnit) -> None:
        copy = UnitCopy(held)
        while held.is_owned:
            if self.schedule.has_others():
                await self._measure_travel(held, copy)
                if (other := self.schedule.due(held)) is not None:
                    await self.directory.look_up(other, held.index)
                    await self._requester.sync(held, copy, other)
            await held.notify.wait()
        self.schedule.forget(held.index)

    async def _measure_travel(self, held: HeldUnit, copy: UnitCopy) -> None:
        """It keeps a copy of the unit: not where there is nobody to sync with."""
        travel = self.schedule.last_sync(held).travel
        if travel.is_out_of_date(copy.version):
            async with copy.lock:
                own, version = copy.value(), copy.version
            await self._parts.compute(held, travel.look, own, version)

    def _copy_of(self, shard: int) -> Copy | None:
        held = self._units.table.held.get(shard)
        return UnitCopy(held) if held is not None and held.is_owned else None
