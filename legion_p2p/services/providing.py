"""Giving blocks to those who fetch checkpoints. A peer trains first: few are served at a time, the others wait for their turn."""

import trio

from legion_p2p.core.cids import Cid
from legion_p2p.core.wire import MAX_BLOCKS_BYTES, Blocks, GetBlocks, HasBlocks, HeldBlocks
from legion_p2p.errors import StoreError
from legion_p2p.services.ports import Archive, Offload

MAX_SERVED = 4  # answers being made at once; more only make each of them slower


class ProvideService:
    """Answers requests for blocks, of whomever."""

    def __init__(self, archive: Archive, offload: Offload) -> None:
        self._archive = archive
        self._offload = offload
        self._served = trio.CapacityLimiter(MAX_SERVED)
        self.sent_blocks = 0
        self.sent_bytes = 0

    async def on_request(self, message: GetBlocks | HasBlocks) -> Blocks | HeldBlocks:
        """Raises: DecodeError, if what is asked for is no CID."""
        cids = [Cid.from_bytes(raw) for raw in message.cids]
        async with self._served:
            if isinstance(message, HasBlocks):
                return HeldBlocks(await self._offload(_held, self._archive, cids))
            blocks = await self._offload(_read, self._archive, cids)
        self.sent_blocks += sum(map(bool, blocks))
        self.sent_bytes += sum(map(len, blocks))
        return Blocks(blocks)


def _held(archive: Archive, cids: list[Cid]) -> bytes:
    return bytes(archive.size_of(cid) is not None for cid in cids)


def _read(archive: Archive, cids: list[Cid]) -> tuple[bytes, ...]:
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
