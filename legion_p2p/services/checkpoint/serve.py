"""Giving blocks to peers that fetch checkpoints."""

import trio

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.core.links import needed_by
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.wire import MAX_BLOCKS_BYTES, MAX_CHECKPOINTS, Blocks, Busy, Checkpoints, GetBlocks, HasBlocks, HeldBlocks
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.services.ports import CheckpointArchive, Offload
from legion_p2p.services.upload_slots import UploadSlotService

MAX_SERVED = 4  # answers being made at once; more only make each of them slower


class ProvideService:
    """Answers requests for blocks, of any peer."""

    def __init__(self, archive: CheckpointArchive, offload: Offload, upload_slots: UploadSlotService) -> None:
        self._archive = archive
        self._offload = offload
        self._upload_slots = upload_slots
        self._served = trio.CapacityLimiter(MAX_SERVED)
        self._counting = trio.Lock()
        self._counted: dict[Cid, int] = {}  # bytes of checkpoints that are kept
        self.sent_blocks = 0
        self.sent_bytes = 0

    async def on_has_blocks(self, peer: PeerId, message: HasBlocks) -> HeldBlocks:
        """Raises: DecodeError, if what is asked for is no CID."""
        return HeldBlocks(await self._sizes([Cid.from_bytes(raw) for raw in message.cids]))

    async def on_get_blocks(self, peer: PeerId, message: GetBlocks) -> ThrottledReply[Blocks] | Busy:
        """Raises: DecodeError, if what is asked for is no CID."""
        cids = [Cid.from_bytes(raw) for raw in message.cids]
        sizes = await self._sizes(cids)

        async def read() -> Blocks:
            async with self._served:
                blocks = await self._offload(_read, self._archive, cids)
            self.sent_blocks += sum(map(bool, blocks))
            self.sent_bytes += sum(map(len, blocks))
            return Blocks(blocks)

        return await self._upload_slots.give(peer, min(sum(sizes), MAX_BLOCKS_BYTES), read)

    async def _sizes(self, cids: list[Cid]) -> tuple[int, ...]:
        async with self._served:
            return await self._offload(_sizes, self._archive, cids)

    async def checkpoints(self, *, with_bytes: bool) -> Checkpoints:
        """Of the run that this peer is in, the newest first."""
        kept = self._archive.kept[:MAX_CHECKPOINTS]
        if with_bytes:
            async with self._counting:
                counted = {cid: self._counted[cid] for cid in kept if cid in self._counted}
                for cid in kept:
                    if cid not in counted:
                        counted[cid] = await self._offload(_bytes_below, self._archive, cid)
                self._counted = counted
        return Checkpoints(tuple(cid.raw for cid in kept), tuple(counted[cid] for cid in kept) if with_bytes else ())


def _sizes(archive: CheckpointArchive, cids: list[Cid]) -> tuple[int, ...]:
    return tuple(archive.size_of(cid) or 0 for cid in cids)


def _bytes_below(archive: CheckpointArchive, root: Cid) -> int:
    """Of a checkpoint; 0: it was pruned meanwhile, or is damaged."""
    try:
        return sum(archive.size_of(cid) or 0 for cid in needed_by(archive.get, [root]))
    except (DecodeError, StoreError):
        return 0


def _read(archive: CheckpointArchive, cids: list[Cid]) -> tuple[bytes, ...]:
    blocks: list[bytes] = []
    room = MAX_BLOCKS_BYTES
    for cid in cids:
        try:
            data = archive.get(cid) if (archive.size_of(cid) or 0) <= room else b""
        except StoreError:
            data = b""
        room -= len(data)
        blocks.append(data)
    return tuple(blocks)
