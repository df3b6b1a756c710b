"""Keeping the regions of a run together: every K versions of a shard two regions sync it, and each moves towards the other.

Asking is in requester.py, answering in responder.py; which regions sync, and when, in sync_schedule.py.

What a copy moves by goes into the owner's residual, so it reaches the members inside the next ordinary updates. What counts as
one's copy is the reference less that residual: the state once all that is on its way has arrived. Nothing here holds up a round.
A relay (core/relays.py) does all this on behalf of the owner, and brings it what the copy moved by (region_relay.py).
"""

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import GetRepresentative, RepresentativeFound, SyncReply, SyncRequest, Unknown
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.copies import Copy, RegionCopy, RelayEstimate
from legion_p2p.services.inter_region.directory import RegionDirectory
from legion_p2p.services.inter_region.pairs import PairStates
from legion_p2p.services.inter_region.region_relay import RelayService
from legion_p2p.services.inter_region.requester import SyncRequester
from legion_p2p.services.inter_region.responder import SyncResponder
from legion_p2p.services.inter_region.sync_parts import SyncParts
from legion_p2p.services.inter_region.sync_schedule import Schedule
from legion_p2p.services.inter_region.synced import SyncedReplicas
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService


class RegionSync:
    """The syncs of one peer with other regions."""

    def __init__(self, ctx: PeerContext, members: MemberService, shards: ShardService) -> None:
        self.pairs = PairStates(ctx.spec.round.moving_rate)
        self.directory = RegionDirectory(ctx, members)
        synced = SyncedReplicas(shards)
        self.schedule = Schedule(ctx, members, synced, self.pairs, self.directory)
        parts = SyncParts(synced, self.pairs, self.schedule, ctx.events, ctx.rng, self._copy_of)
        self.relay = RelayService(parts, shards)
        self.responder = SyncResponder(ctx, members, parts)
        self.requester = SyncRequester(ctx, parts, self.responder)
        self._parts = parts
        self._members = members
        self._shards = shards
        self._sync_codec = ctx.spec.round.sync_codec

    async def run_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            for replica in self._shards.replicas.values():
                nursery.start_soon(self._sync_when_due, replica)

    def forget(self) -> None:
        """This peer has moved to another region: what it knew as an owner is no longer its own."""
        self.pairs.clear()
        self.schedule.clear()
        self.relay.clear()

    async def on_request(self, peer: PeerId, message: SyncRequest) -> SyncReply | Unknown:
        """Sync a shard with another region that asks for it. Raises: LegionError, to be sent back; then nothing has moved."""
        self._shards.replica(message.shard)  # one that there is
        await self.directory.look_up(message.region, message.shard, peer)
        return await self.responder.on_request(peer, message)

    async def on_get_representative(self, peer: PeerId, message: GetRepresentative) -> RepresentativeFound:
        """Who syncs a shard of this peer's region. Raises: NetworkError."""
        return self.schedule.about(message)

    async def _sync_when_due(self, replica: Replica) -> None:
        while True:
            copy = self._copy_of(replica.shard)
            if copy is None:
                self.schedule.forget(replica.shard)
            else:
                travel = self.schedule.last_sync(replica).travel
                if travel.is_out_of_date(copy.version) and self.schedule.has_others():  # it keeps a copy of the shard
                    await self._parts.compute(replica, travel.look, copy.value(), copy.version)
                if (other := self.schedule.due(replica)) is not None:
                    await self.directory.look_up(other, replica.shard)
                    await self.requester.sync(replica, copy, other)
            if not isinstance(copy, RelayEstimate):
                await self.relay.finish(replica)
            elif copy.is_due:
                await self.relay.deliver(replica, self._sync_codec)
            await replica.notify.wait()

    def _copy_of(self, shard: int) -> Copy | None:
        """What this peer represents in its region; None: nothing."""
        replica = self._shards.replica(shard)
        if replica.is_owned:
            return RegionCopy(replica)
        is_relay = (
            self._members.own.now().relay and self.schedule.representative(self._shards.region, replica.shard) == self._shards.me
        )
        return self.relay.copy(replica) if is_relay else None
