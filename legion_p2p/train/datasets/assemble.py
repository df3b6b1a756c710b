"""The last step of a preparation: the shards of all tasks become one data set.

What goes where is written down before any file is moved, so that it can be done again after it was stopped anywhere.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import MAX_DATA_SHARDS, Dataset, DataShard, encode_data_node
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import telling, write_whole
from legion_p2p.store.dataset_files import DATASET, TOKENIZER, node_path, shard_path, write_node
from legion_p2p.train.datasets.preparation import Preparation, PreparedPart
from legion_p2p.train.datasets.token_shards import WrittenShard, copy_part
from legion_p2p.train.datasets.tokenizer import Tokenizer
from legion_p2p.train.datasets.work import PARTS

ASSEMBLY = "assembly.json"
MAX_ASSEMBLY_BYTES = 16 << 20
CARVED_SHARE = 0.05  # of the last shard, where chance has held back no document


class _Assembly(msgspec.Struct, frozen=True):
    train: tuple[WrittenShard, ...]
    validation: tuple[WrittenShard, ...]


def assemble(
    out: Path, settings: Preparation, tokenizer: Tokenizer, sources: Sequence[int], parts: Sequence[PreparedPart]
) -> None:
    """Write the data set's node, with the shards of all parts, in order and in the shares that were asked for.

    `sources`: of which source each part is. Raises: StoreError; DiskFullError; UsageError.
    """
    plan = out / PARTS / ASSEMBLY
    if plan.is_file():
        assembly = msgspec.json.decode(read_text(plan, MAX_ASSEMBLY_BYTES), type=_Assembly)
    else:
        assembly = _plan(out / PARTS, settings, sources, parts)
        write_whole(plan, msgspec.json.encode(assembly))
    dataset = Dataset(
        tokenizer.vocab_size, tokenizer.dtype.itemsize, tokenizer.end_of_text,
        write_node(out / TOKENIZER) if tokenizer.raw else None,
        tuple(_moved(out, "train", i, shard) for i, shard in enumerate(assembly.train)),
        tuple(_moved(out, "validation", i, shard) for i, shard in enumerate(assembly.validation)),
    )  # fmt: skip
    write_whole(out / DATASET, encode_data_node(dataset))


def _plan(folder: Path, settings: Preparation, sources: Sequence[int], parts: Sequence[PreparedPart]) -> _Assembly:
    train = [(source, shard) for source, part in zip(sources, parts, strict=True) for shard in part.train]
    kept = _in_shares(folder, settings, train) if settings.weights else [shard for _, shard in train]
    validation = [shard for part in parts for shard in part.validation]
    if not kept:
        raise StoreError(f"{', '.join(map(shown, settings.sources))}: no text to train on; is it all empty, or broken?")
    n_carved = int(kept[-1].n_tokens * CARVED_SHARE)
    if not validation and settings.validation and n_carved:
        last, n_left = kept[-1], kept[-1].n_tokens - n_carved
        kept[-1] = copy_part(folder / last.path, 0, n_left, folder / "kept")
        validation = [copy_part(folder / last.path, n_left, last.n_tokens, folder / "carved")]
    if max(len(kept), len(validation)) > MAX_DATA_SHARDS:
        raise StoreError(f"{len(kept)} shards, at most {MAX_DATA_SHARDS}: prepare the data in several parts")
    return _Assembly(tuple(kept), tuple(validation))


def _in_shares(folder: Path, settings: Preparation, shards: Sequence[tuple[int, WrittenShard]]) -> list[WrittenShard]:
    """The first tokens of each source, as many as its weight allows."""
    there = [sum(shard.n_tokens for source, shard in shards if source == i) for i in range(len(settings.sources))]
    total = min(n_tokens / weight for n_tokens, weight in zip(there, settings.weights, strict=True))
    room = [round(total * weight) for weight in settings.weights]
    kept = []
    for source, shard in shards:
        n_tokens = min(shard.n_tokens, room[source])
        room[source] -= n_tokens
        if n_tokens == shard.n_tokens:
            kept.append(shard)
        elif n_tokens:
            kept.append(copy_part(folder / shard.path, 0, n_tokens, folder / f"short-{source}"))
    return kept


def _moved(out: Path, part: Literal["train", "validation"], index: int, shard: WrittenShard) -> DataShard:
    """Give a shard its place in the data set, unless it is there."""
    there, here = out / PARTS / shard.path, shard_path(out, part, index)
    with telling(here):
        for old, new in ((node_path(there), node_path(here)), (there, here)):
            if old.exists() or not new.exists():
                os.replace(old, new)
    return DataShard(Cid.parse(shard.cid), shard.n_tokens)
