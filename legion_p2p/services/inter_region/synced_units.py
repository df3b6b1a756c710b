"""The units of a sharded run, as regions sync them: each region holds the whole model, and counts as one trainer."""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from torch import Tensor

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.eligible import Eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Request
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import R, Rpc
from legion_p2p.services.sharding.held import HeldUnit
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor import codec
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.codec import Codec

T = TypeVar("T")

MAX_CONCURRENT_SYNCS = 4  # of one peer: each holds a few copies of a unit


def rounds_in_steps(rounds: RoundSpec) -> RoundSpec:
    """A version of a unit is one step, and that of a shard in other runs `local_steps` of them. Regions sync equally often."""
    return msgspec.structs.replace(
        rounds,
        sync_every=rounds.sync_every * rounds.local_steps,
        max_sync_every=rounds.max_sync_every * rounds.local_steps,
    )


class SyncedUnits:
    """What `inter_region` asks of the units that this peer holds."""

    def __init__(self, ctx: PeerContext, members: MemberService, table: UnitTable) -> None:
        self._table = table
        self._offload = ctx.offload
        self._rpc = Rpc(ctx.messenger, members)
        self._transfers = QuickLock(MAX_CONCURRENT_SYNCS)
        self.run = table.run
        self.me = table.me
        self.region = table.region
        self.n_shards = len(table.units)
        self.numel = sum(unit.numel for unit in table.units)
        self.rounds = rounds_in_steps(ctx.spec.round)

    def replica(self, shard: int) -> HeldUnit:
        held = self._table.unit_held(shard)
        if held is None:
            raise NetworkError(f"unit {shard} is not held here")
        return held

    def reference(self, shard: int) -> Tensor:
        return self.replica(shard).weights

    def owner_here(self, shard: int) -> PeerId | None:
        return self._table.ownership(shard).owner

    def owner_there(self, region: str, shard: int, members: Eligible) -> PeerId | None:
        return self._table.ownership_among(region, shard, members).owner

    def version_at(self, announced: Announcement, shard: int) -> int | None:
        return announced.run_step

    def codec_of(self, shard: int, name: str) -> Codec:
        return codec.get(name)

    async def compute(self, n_elements: int, fn: Callable[..., T], *args: object) -> T:
        return await self._offload(fn, *args)

    async def ask_owner(self, peer: PeerId, request: Request[R]) -> R:
        async with self._transfers:
            return await self._rpc.ask(peer, request, Priority.ROUND)


class UnitCopy:
    """This region's copy of a unit, at its owner: the weights less what goes with the next step."""

    def __init__(self, held: HeldUnit) -> None:
        self.lock = held.lock
        self._held = held

    @property
    def version(self) -> int:
        return self._held.version

    @property
    def is_ours(self) -> bool:
        return self._held.is_owned

    def value(self) -> Tensor:
        """A copy: steps change the weights in place. To be called under `lock`."""
        taken = self._held.to_subtract
        return self._held.weights.clone() if taken is None else self._held.weights - taken

    def subtract(self, step: Tensor) -> None:
        """Raises: NonFiniteError."""
        held = self._held
        taken = step if held.to_subtract is None else held.to_subtract + step
        require_finite(taken)
        held.to_subtract, held.is_move_due = taken, True
