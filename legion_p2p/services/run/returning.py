"""Coming back after an absence: a peer that was away while the others went on follows them before it owns again.

it was away, and another member of its region is ready -> own nothing; wait RETURN_S; catch up; own again
it was away, and nobody else is ready                  -> nothing: what it holds is the newest
it is found to have been away while it returns         -> it returns once more
"""

import trio

from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.gate import OwnershipGate
from legion_p2p.services.shards.service import ShardService

RETURN_S = 1.0  # to hear which members stayed, and that the others that were away own nothing either


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
