"""Checkpoints of a sharded run: the same manifests as of any other, made of units that are pulled one after the other.

The flattened parameters are cut into equal shards there, so that a checkpoint does not depend on how a run holds its model. What
the optimizer remembers is stored beside them, cut alike: a run that is not sharded passes over it.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import trio
from torch import Tensor

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import MOMENTS, StoredMoments
from legion_p2p.core.messages.sharding import UnitPart
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.ports import CheckpointArchive, Offload
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.services.sharding.unit_client import UnitClient
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.flatten import digest, fp32_bytes

REST = 10  # times as long as the last checkpoint took: training waits for it


class FlatMoments(NamedTuple):
    """Of the whole model."""

    n_steps: int
    first: Tensor
    second: Tensor


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
        self._with_moments = True
        """False, once the store had room for the weights alone."""
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
            await self._store(self._archive, step)
        except (StoreError, DecodeError) as failed:
            self._ctx.events.error("checkpoint.failed", f"nothing is stored for now, training goes on: {failed}")
        took_s = trio.current_time() - began
        self._next_at = trio.current_time() + max(self._every_s, REST * took_s)
        if self._saved_step == step:
            self._ctx.events.emit("checkpoint.stored", step=step, cid=str(self.newest), wall_s=round(took_s, 3))

    async def _store(self, archive: CheckpointArchive, step: int) -> None:
        """With what the optimizer remembers, where the store has room for that. Raises: NetworkError; StoreError; DecodeError."""
        refused = ""
        if self._with_moments:
            try:
                await self._publish(archive, step, with_moments=True)
            except StoreError as failed:
                refused = str(failed)
                await self._ctx.disk(archive.recover)
        if self._saved_step == step:
            return
        await self._publish(archive, step, with_moments=False)
        if refused:
            self._with_moments = False
            told = f"the checkpoint is stored without what the optimizer remembers: {refused}"
            self._ctx.events.error("checkpoint.moments_left_out", told)

    async def _publish(self, archive: CheckpointArchive, step: int, *, with_moments: bool) -> None:
        for shard in range(self._ctx.plan.n_shards):
            weights = await self._shard(shard, partial(self._client.pull, step=step, exact=True))
            made = await self._ctx.offload(digest, weights)
            await self._ctx.disk(archive.put_base, shard, step, made, (), fp32_bytes(weights))
        state = dict(self.trainer_state())
        moments = await self._moments(archive, step) if with_moments else None
        if moments is not None:
            state[MOMENTS] = await self._ctx.disk(archive.put_moments, moments)
        self.newest = await self._ctx.disk(archive.publish, step, int(self._ctx.wall_time()), state)
        self._saved_step = step

    async def _moments(self, archive: CheckpointArchive, step: int) -> StoredMoments | None:
        """What the optimizer remembers before `step`, stored; None before the first step. Raises: NetworkError; StoreError."""
        n_steps = 0
        parts: dict[UnitPart, list[Cid]] = {"first": [], "second": []}
        for part, bases in parts.items():

            async def pull(unit: int, part: UnitPart = part) -> Tensor:
                nonlocal n_steps
                seen, moment = await self._client.pull_moment(unit, step, part)
                n_steps = max(n_steps, seen)
                return moment

            for shard in range(self._ctx.plan.n_shards):
                moment = await self._shard(shard, pull)
                if not n_steps:
                    return None
                bases.append(await self._ctx.disk(archive.put_moment, step, fp32_bytes(moment)))
        return StoredMoments(n_steps, tuple(parts["first"]), tuple(parts["second"]))

    async def _shard(self, shard: int, pull: Callable[[int], Awaitable[Tensor]]) -> Tensor:
        """The flat elements of a shard, out of what `pull` gives of each unit."""
        start, end = self._ctx.plan.bounds(shard)
        flat = torch.empty(end - start, dtype=torch.float32, device="cpu")
        pulled: tuple[int, Tensor | None] = (-1, None)
        for begins, unit, at, numel in self._places:
            a, b = max(begins, start), min(begins + numel, end)
            if a >= b:
                continue
            if pulled[0] != unit:
                pulled = unit, await pull(unit)
            assert pulled[1] is not None
            flat[a - start : b - start] = pulled[1][at + a - begins : at + b - begins]
        return flat


async def read_moments(archive: CheckpointArchive, disk: Offload, state: Mapping[str, Any]) -> FlatMoments | None:
    """What the optimizer remembers, as a checkpoint's state names it; None where it names nothing. Raises: StoreError;
    DecodeError."""
    named = state.get(MOMENTS)
    if not isinstance(named, Cid):
        return None
    stored = await disk(archive.moments, named)
    flat: list[Tensor] = []
    for bases in (stored.first, stored.second):
        shards = [await disk(archive.moment, shard, base) for shard, base in enumerate(bases)]
        flat.append(torch.cat([torch.frombuffer(bytearray(data), dtype=torch.float32) for data in shards]))
    if not all(map(is_finite, flat)) or bool((flat[1] < 0).any()):
        raise DecodeError(f"moments {named} carry NaN, infinity, or a negative variance")
    return FlatMoments(stored.n_steps, flat[0], flat[1])


def _offsets(sizes: list[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
