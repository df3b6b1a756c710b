"""Verifying and exporting a stored checkpoint, as a peer does it for its page."""

from collections.abc import Callable
from pathlib import Path

from legion_p2p.core.cids import Cid
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoint_summary import damage_of
from legion_p2p.train.checkpoint import Checkpoint
from legion_p2p.train.companions import stored_tokenizer
from legion_p2p.train.export import export_safetensors
from legion_p2p.web.checkpoint_jobs import CheckpointTools

FP32_BYTES = 4


def misfits_of(store: BlockStore, cid: Cid, progress: Callable[[int], None]) -> list[str]:
    """What does not fit together where all blocks are whole. `progress` is called with the number of elements done."""
    try:
        for _ in Checkpoint(store, cid).shards(progress):
            pass
    except (DecodeError, StoreError) as bad:
        return [str(bad)]
    return []


def verify(store: BlockStore, cid: Cid, progress: Callable[[int], None]) -> list[str]:
    """What is wrong with it: blocks that are missing or damaged, or updates that do not lead to its digests."""
    return damage_of(store, cid, progress) or misfits_of(store, cid, lambda n: progress(FP32_BYTES * n))


def export(store: BlockStore, cid: Cid, folder: Path, progress: Callable[[int], None]) -> str:
    """Write it as safetensors into that folder; how its parameters are named. Raises: LegionError."""
    opened = Checkpoint(store, cid)
    tokenizer = stored_tokenizer(opened.spec, store.get)
    return export_safetensors(opened, folder, progress=lambda n: progress(FP32_BYTES * n), tokenizer=tokenizer)


CHECKPOINT_TOOLS = CheckpointTools(verify, export)
