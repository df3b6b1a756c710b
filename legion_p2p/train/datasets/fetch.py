"""Fetching a prepared data set from peers that have it, block by block, like a checkpoint.

The blocks come into a block store inside the folder, so that a fetch that was stopped goes on; then they become the files.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.dataset import Dataset, decode_dataset, decode_file
from legion_p2p.errors import DecodeError, QuotaError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.writing import make_folder, replacing, telling, write_all, write_whole
from legion_p2p.observe import human
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.fetch import Fetched, Fetcher
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.dataset_files import DATASET, TOKENIZER, node_path, read_dataset, shard_path
from legion_p2p.visit import STRANGER, Visitor, members_of, visiting

BLOCKS = ".blocks"
SLACK = 1.1  # nodes, headers and the tokenizer, beside the tokens


def fetch_dataset(
    root: Cid,
    contacts: Sequence[str],
    out: Path,
    *,
    run: str = "",
    visitor: Visitor = STRANGER,
    max_bytes: int = 0,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Fetched | None:
    """Fetch the data set of this id into a folder; None, where it is there already.

    `run`: the name or id of a run whose members may have it; `visitor`: as whom they are asked. `max_bytes`: refuse what is
    larger; 0: no limit.

    Raises: MissingBlockError, if nobody in reach has it; StoreError, if it is too large, or the disk refuses; DecodeError, if it
    is no data set; NoContactError; UnknownRunError.
    """
    make_folder(out)
    if (out / DATASET).is_file():
        there, _ = read_dataset(out)
        if there != root:
            raise StoreError(f"{shown(out)} holds another data set, {there}: choose another folder")
        return None
    quota_bytes = max_bytes or None
    with BlockStore(out / BLOCKS, quota_bytes=quota_bytes) as blocks, blocks.hold():
        blocks.pin(root, "fetched")
        try:
            fetched = trio.run(_fetch, root, contacts, run, visitor, blocks, max_bytes, progress)
        except QuotaError as full:
            raise StoreError(f"data set {root} takes more than its {human.bytes_text(max_bytes)}: {full}") from full
        write_files(root, blocks, out)
    with telling(out):
        shutil.rmtree(out / BLOCKS)
    return fetched


async def _fetch(
    root: Cid,
    contacts: Sequence[str],
    run: str,
    visitor: Visitor,
    blocks: BlockStore,
    max_bytes: int,
    progress: Callable[[int], None],
) -> Fetched:
    from legion_p2p.net.offload import ThreadOffload

    async with visiting(contacts, visitor) as network:
        fetcher = Fetcher(network.messenger, network.discovery, blocks, ThreadOffload(), Events(), progress)
        if run:
            fetcher.providers |= await members_of(network, run, visitor)
        return await fetch_blocks(fetcher, root, max_bytes)


async def fetch_blocks(fetcher: Fetcher, root: Cid, max_bytes: int) -> Fetched:
    """All blocks of a data set; what is larger than `max_bytes`, or no data set, is refused before the bulk of it comes."""
    if root.codec != DAG_CBOR:
        raise DecodeError(f"{root} names raw bytes, not a data set")
    return await fetcher.fetch(root, lambda data: _check_size(root, decode_dataset(data), max_bytes))


def _check_size(root: Cid, dataset: Dataset, max_bytes: int) -> None:
    """Before the bulk of it is fetched. Raises: StoreError."""
    n_tokens = sum(shard.n_tokens for shard in (*dataset.train, *dataset.validation))
    n_bytes = round(SLACK * n_tokens * dataset.token_bytes)
    if max_bytes and n_bytes > max_bytes:
        raise StoreError(
            f"data set {root} takes about {human.bytes_text(n_bytes)}, and at most {human.bytes_text(max_bytes)} are allowed: "
            f"raise --store-max-gb, or fetch it yourself: legion-ctl data fetch {root} --out FOLDER --initial-peers ADDR"
        )


def write_files(root: Cid, blocks: BlockStore, out: Path) -> None:
    """The files of a data set whose blocks are here. Raises: StoreError; DecodeError, if a file is not cut as its node says."""
    raw = blocks.get(root)
    dataset = decode_dataset(raw)
    if dataset.tokenizer is not None:
        _write_file(out / TOKENIZER, dataset.tokenizer, blocks)
    for part, shards in (("train", dataset.train), ("validation", dataset.validation)):
        for i, shard in enumerate(shards):
            _write_file(shard_path(out, part, i), shard.file, blocks)
    write_whole(out / DATASET, raw)  # last: with it the data set is there


def _write_file(path: Path, cid: Cid, blocks: BlockStore) -> None:
    raw = blocks.get(cid)
    node = decode_file(raw)
    with replacing(path) as file:
        for i, leaf in enumerate(node.leaves):
            data = blocks.get(leaf)
            if len(data) != node.size_of(i):
                raise DecodeError(f"a leaf of {len(data)} bytes in {shown(path)}, where {node.size_of(i)} are named")
            write_all(file, data)
    write_whole(node_path(path), raw)
