"""Coming back after an absence: a peer that was away while the others went on follows them before it owns again.

it was away, and another member of its region is ready -> own nothing; wait RETURN_S; catch up; own again
it was away, and nobody else is ready                  -> nothing: what it holds is the newest
it is found to have been away while it returns         -> it returns once more
its process was started again, in a run that watches
owners, and others train there                         -> own nothing until they have made a version of each shard

An owner that is killed and started again has lost the pushes that it has signed receipts for, and the inputs of versions that
nobody has signed yet. If it made the next version itself, the receipts would prove a lie, and nobody could sign what came before.
"""

import trio

from legion_p2p.core.roles import Role
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.gate import OwnershipGate
from legion_p2p.services.shards.service import ShardService

RETURN_S = 1.0  # to hear which members stayed, and that the others that were away own nothing either
OTHERS_S = 60.0  # for others to make a version, after which it owns all the same: they may train no longer
LOOK_S = 0.5  # between two looks whether they have


class ReturnService:
    """Waits for the end of an absence, and brings this peer back."""

    def __init__(self, ctx: PeerContext, members: MemberService, shards: ShardService, gate: OwnershipGate) -> None:
        self._run = ctx.run
        self._events = ctx.events
        self._members = members
        self._shards = shards
        self._gate = gate

    async def run_forever(self) -> None:
        while True:
            while not self._members.absence.was_away:
                await self._members.absence.noticed.wait()
            self._members.absence.was_away = False
            if any(m.announcement.ready for m in self._members.roster.in_region()):
                await self._return()

    async def _return(self) -> None:
        self._events.emit("run.rejoining", run=self._run)
        async with self._gate.suspended():
            await trio.sleep(RETURN_S)
            await self._shards.sync_all()
            self._members.table.incarnation += 1  # those that took this peer for dead believe the next one
        self._events.emit("run.rejoined", run=self._run)


async def let_others_go_on(ctx: PeerContext, members: MemberService, shards: ShardService) -> None:
    """This peer holds all shards, and is about to own some. Return when others have made a version of each that it may have owned
    before it was started again: of each that contains a push of its key."""
    may_have_owned = ctx.spec.round.verify != "none" and ctx.config.role is not Role.CLIENT
    if not may_have_owned or not members.roster.training(shards.region):
        return
    held = {shard: replica.version for shard, replica in shards.replicas.items() if replica.chain.newest(ctx.me) >= 0}
    with trio.move_on_after(OTHERS_S):
        while True:
            shards.on_members_changed()
            owned = [shard for shard in held if shards.ownership(shard).owner is not None]
            behind = [shard for shard in owned if shards.replicas[shard].version <= held[shard]]
            if not behind:
                return
            await trio.sleep(LOOK_S)
            await shards.sync(behind)
