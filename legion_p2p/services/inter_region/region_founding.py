"""The first member of a region of a sharded run: it fetches every unit from other regions, and owns all of them at first.

Others of its region join it as they would join any. If two of them found the region at the same moment, both own every unit for
a few seconds, and one lets go, as after any split (services/sharding/mover.py).
"""

from collections.abc import Iterator

import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import Busy
from legion_p2p.core.messages.sharding import PullUnit, UnitElsewhere, UnitPart, UnitWeights
from legion_p2p.core.priority import Priority
from legion_p2p.core.sharding.plan import Unit
from legion_p2p.errors import CodecError, JoinError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.unit_sync import UnitSync
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc
from legion_p2p.services.sharding.service import UnitService
from legion_p2p.tensor.adamw import Moments

N_AT_ONCE = 4  # units on their way here
FETCH_S = 600.0  # for one unit of at most 32 MiB, with others on their way: 2 Mbit/s suffice
AGAIN_S = 0.5


class RegionFounder:
    """Brings the model into a region that has no member with it."""

    def __init__(self, ctx: PeerContext, members: MemberService, units: UnitService, sync: UnitSync) -> None:
        self._run = ctx.run
        self._me = ctx.me
        self._events = ctx.events
        self._offload = ctx.offload
        self._members = members
        self._units = units
        self._sync = sync
        self._rpc = Rpc(ctx.messenger, members)
        self._introduced: set[PeerId] = set()

    @property
    def is_needed(self) -> bool:
        """Members that hold the model are known, and none of them is in this region."""
        others = self._members.roster.others()
        return any(a.ready for a in others) and not self._members.roster.ready(self._units.table.region)

    async def found(self) -> None:
        """Own every unit, with the weights of another region. Raises: JoinError, if one cannot be had."""
        began = trio.current_time()
        waiting = list(self._units.table.units)
        newest = 0
        remembered: dict[int, Moments] = {}

        async def fetch() -> None:
            nonlocal newest
            while waiting:
                unit = waiting.pop(0)
                step, _, weights = await self._fetched(unit, "weights")
                await self._units.hold(unit, weights)
                newest = max(newest, step)
                _, n_first, first = await self._fetched(unit, "first")
                _, n_second, second = await self._fetched(unit, "second")
                if n_first and n_second:
                    remembered[unit.index] = Moments(first, second, n_second)

        async with open_flat_nursery() as nursery:
            for _ in range(N_AT_ONCE):
                nursery.start_soon(fetch)
        self._units.table.begin_at(newest)
        n_steps = max((moments.n_steps for moments in remembered.values()), default=0)
        for unit, moments in remembered.items():
            moments.n_steps = n_steps  # the other region has made some steps meanwhile
            self._units.table.held[unit].moments = moments
        wall_s = round(trio.current_time() - began, 3)
        self._events.emit("region.founded", region=self._units.table.region, step=newest, wall_s=wall_s)

    async def _fetched(self, unit: Unit, part: UnitPart) -> tuple[int, int, Tensor]:
        """A part of it, and steps that the unit has made, and that the part has seen if it is a moment. Raises: JoinError."""
        request = PullUnit(self._run, unit.index, 0, exact=part == "weights", part=part)
        reason = "no other region has an owner of it"
        give_up_at = trio.current_time() + FETCH_S
        while trio.current_time() < give_up_at:
            again_s = AGAIN_S
            for region in self._other_regions():
                await self._sync.directory.look_up(region, unit.index)
                for peer in self._owners(region, unit.index):
                    try:
                        reply = await self._asked(peer, request)
                        if isinstance(reply, UnitElsewhere):
                            continue
                        if isinstance(reply, Busy):
                            reason, again_s = f"{peer} serves others", max(again_s, reply.retry_ms / 1000)
                            continue
                        return reply.version, reply.n_steps, await self._offload(self._units.client.read, request, reply)
                    except (NetworkError, CodecError) as failed:
                        reason = str(failed)
            await trio.sleep(again_s)
        raise JoinError(f"unit {unit.index} of the model did not come from another region in {FETCH_S:.0f} s: {reason}")

    async def _asked(self, peer: PeerId, request: PullUnit) -> UnitWeights | UnitElsewhere | Busy:
        """Raises: NetworkError."""
        if peer not in self._introduced:  # shows by what the run admits this one
            self._introduced.add(peer)
            await self._members.exchange_with(peer)
        try:
            return await self._rpc.ask(peer, request, Priority.CATCH_UP, within_s=FETCH_S)
        except NetworkError:
            self._introduced.discard(peer)
            raise

    def _other_regions(self) -> list[str]:
        """All units come from the same one, unless that fails: the largest."""
        members = self._sync.schedule.by_region()
        members.pop(self._units.table.region, None)
        return sorted(members, key=lambda region: (-len(members[region]), region))

    def _owners(self, region: str, unit: int) -> Iterator[PeerId]:
        """The one that should own it there, then all of the region that are known: units may be on the move."""
        owner = self._sync.schedule.owner(region, unit)
        if owner is not None:
            yield owner
        for announced in self._sync.schedule.by_region().get(region, ()):
            if announced.peer_id != owner:
                yield PeerId(announced.peer_id)
