"""Checkpoints of a sharded run: the same manifests as of any other, made of units that are pulled one after the other.

The flattened parameters are cut into equal shards there, so that a checkpoint does not depend on how a run holds its model.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import trio
from torch import Tensor

from legion_p2p.core.cids import Cid
from legion_p2p.errors import StoreError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.ports import CheckpointArchive
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.services.sharding.unit_client import UnitClient
from legion_p2p.tensor.flatten import digest, fp32_bytes

REST = 10  # times as long as the last checkpoint took: training waits for it


class UnitSaver:
    """Writes what the whole group holds into the archive of one peer."""

    def __init__(self, ctx: PeerContext, archive: CheckpointArchive | None, table: UnitTable, client: UnitClient) -> None:
        self.newest: Cid | None = None
        self.trainer_state: Callable[[], Mapping[str, Any]] = dict
        """What the training thread needs to go on after a restart."""
        self._ctx = ctx
        self._archive = archive
        self._client = client
        self._every_s = ctx.config.checkpoints.every_s
        self._next_at = trio.current_time() + self._every_s
        self._saved_step: int | None = None
        starts = table.plan.starts
        self._places = sorted(
            (starts[piece.param] + piece.start, unit.index, at, piece.numel)
            for unit in table.units
            for piece, at in zip(unit.pieces, _offsets([p.numel for p in unit.pieces]), strict=True)
        )
        """Of every piece: where it begins in the flattened model, its unit, where it begins there, and how long it is."""

    def is_due(self) -> bool:
        """It is time for another checkpoint."""
        return self._archive is not None and self._next_at <= trio.current_time()

    async def save(self, step: int) -> None:
        """Store all units as they are before `step` is made: this peer holds that up meanwhile. What fails is told, and tried
        again later. Raises: NetworkError."""
        if self._archive is None or self._saved_step == step:
            return
        began = trio.current_time()
        try:
            for shard in range(self._ctx.plan.n_shards):
                weights = await self._shard(shard, step)
                made = await self._ctx.offload(digest, weights)
                await self._ctx.disk(self._archive.put_base, shard, step, made, (), fp32_bytes(weights))
            created_s = int(self._ctx.wall_time())
            self.newest = await self._ctx.disk(self._archive.publish, step, created_s, self.trainer_state())
            self._saved_step = step
        except StoreError as failed:
            self._ctx.events.error("checkpoint.failed", f"nothing is stored for now, training goes on: {failed}")
        took_s = trio.current_time() - began
        self._next_at = trio.current_time() + max(self._every_s, REST * took_s)
        if self._saved_step == step:
            self._ctx.events.emit("checkpoint.stored", step=step, cid=str(self.newest), wall_s=round(took_s, 3))

    async def _shard(self, shard: int, step: int) -> Tensor:
        start, end = self._ctx.plan.bounds(shard)
        flat = torch.empty(end - start, dtype=torch.float32, device="cpu")
        pulled: tuple[int, Tensor | None] = (-1, None)
        for begins, unit, at, numel in self._places:
            a, b = max(begins, start), min(begins + numel, end)
            if a >= b:
                continue
            if pulled[0] != unit:
                pulled = unit, await self._client.pull(unit, step, exact=True)
            assert pulled[1] is not None
            flat[a - start : b - start] = pulled[1][at + a - begins : at + b - begins]
        return flat


def _offsets(sizes: list[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
