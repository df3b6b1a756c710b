"""Moving to another region: hand over what is owned here, take over what is common there, and only then own there.

Which region is the right one is decided in core/regions.py, and measured by services/membership/location.py.
"""

from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.sync import RegionSync
from legion_p2p.services.membership.location import RegionService
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.gate import OwnershipGate
from legion_p2p.services.run.weight import OwnWeight
from legion_p2p.services.shards.service import ShardService


class MoveService:
    """Once per announcement period measures where this peer is, and moves it when another region has become its own."""

    def __init__(
        self,
        ctx: PeerContext,
        members: MemberService,
        shards: ShardService,
        regions: RegionService,
        region_sync: RegionSync,
        gate: OwnershipGate,
        weight: OwnWeight,
    ) -> None:
        self._events = ctx.events
        self._members = members
        self._shards = shards
        self._regions = regions
        self._region_sync = region_sync
        self._gate = gate
        self._weight = weight

    async def run_forever(self) -> None:
        while True:
            label = await self._regions.next_look()
            self._weight.measure()
            if label != self._shards.region:
                await self._move(label)

    async def _move(self, label: str) -> None:
        before = self._shards.region
        async with self._gate.suspended():
            self._shards.move(label)
            self._region_sync.forget()
            await self._members.enter()
            self._gate.tell()
            await self._shards.adopt_region()
        self._events.emit("region.moved", before=before, after=label)
