"""A prepared data set in a folder, and the same as blocks that other peers fetch.

    dataset.cbor                          the Dataset node: its CID is the id of the data set
    tokenizer.json, tokenizer.node        the tokenizer, and the FileNode that names its leaves
    train-00000.bin, train-00000.node     the shards, in order
    validation-00000.bin, ...

The files are the blocks: a leaf is a piece of a .bin, read where it lies, so that what is given to others takes no second place
on the disk. It is checked against its name whenever it is read.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.dataset import (
    MAX_TOKENIZER_BYTES,
    Dataset,
    FileNode,
    decode_dataset,
    decode_file,
    encode_data_node,
    file_node,
    leaves_of,
)
from legion_p2p.core.manifest import MAX_BLOCK_BYTES, MAX_LEAF_BYTES
from legion_p2p.errors import DecodeError, MissingBlockError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import opened, read_limited
from legion_p2p.files.writing import write_whole
from legion_p2p.store.blocks import BlockStore

DATASET = "dataset.cbor"
TOKENIZER = "tokenizer.json"


def node_path(file: Path) -> Path:
    """Where the node of a file is."""
    return file.with_suffix(".node")


def shard_path(folder: Path, part: str, index: int) -> Path:
    """`part`: train or validation."""
    return folder / f"{part}-{index:05d}.bin"


def is_dataset(folder: Path) -> bool:
    return (folder / DATASET).is_file()


def read_dataset(folder: Path) -> tuple[Cid, Dataset]:
    """The data set in a folder, and its id; that its files are there, in their lengths, is checked.

    Raises: StoreError, naming the file that is missing or has another length.
    """
    path = folder / DATASET
    raw = read_limited(path, MAX_BLOCK_BYTES)
    try:
        dataset = decode_dataset(raw)
    except DecodeError as bad:
        raise StoreError(f"{shown(path)} is not what legion-ctl data prepare writes: {bad}") from bad
    for file, cid in files_of(folder, dataset):
        node = read_node(file, cid)
        size = os.stat(file).st_size if file.is_file() else -1
        if size != node.n_bytes:
            told = "is missing" if size < 0 else f"has {size} bytes, where the data set has {node.n_bytes}"
            raise StoreError(f"{shown(file)} {told}; prepare or fetch the data again")
    return Cid.of(raw, DAG_CBOR), dataset


def files_of(folder: Path, dataset: Dataset) -> Iterator[tuple[Path, Cid]]:
    """Every file of it, and the CID of its node."""
    if dataset.tokenizer is not None:
        yield folder / TOKENIZER, dataset.tokenizer
    for part, shards in (("train", dataset.train), ("validation", dataset.validation)):
        for i, shard in enumerate(shards):
            yield shard_path(folder, part, i), shard.file


def read_node(file: Path, cid: Cid) -> FileNode:
    """The node of a file. Raises: StoreError, if it is not there or not the one that is meant."""
    path = node_path(file)
    raw = read_limited(path, MAX_BLOCK_BYTES)
    if not cid.names(raw):
        raise StoreError(f"{shown(path)} is not the one that the data set names; prepare or fetch the data again")
    return decode_file(raw)


def write_node(file: Path) -> Cid:
    """Read a file, and write its node beside it. Raises: StoreError."""
    leaves = []
    with opened(file) as data:
        while piece := data.read(MAX_LEAF_BYTES):
            leaves.append(Cid.of(piece))
        n_bytes = data.tell()
    raw = encode_data_node(FileNode(n_bytes, tuple(leaves)))
    write_whole(node_path(file), raw)
    return Cid.of(raw, DAG_CBOR)


def check_tokenizer(folder: Path, dataset: Dataset) -> bytes:
    """The tokenizer.json, checked against its name; empty: there is none. Raises: StoreError."""
    if dataset.tokenizer is None:
        return b""
    path = folder / TOKENIZER
    raw = read_limited(path, MAX_TOKENIZER_BYTES)
    node = read_node(path, dataset.tokenizer)
    if file_node(raw) != node:
        raise StoreError(f"{shown(path)} is not the tokenizer of this data set any more; prepare or fetch the data again")
    return raw


def keep_tokenizer(folder: Path, store: BlockStore) -> None:
    """Put the tokenizer into a store, and pin it: exports of checkpoints want it. Raises: StoreError; QuotaError."""
    _, dataset = read_dataset(folder)
    raw = check_tokenizer(folder, dataset)
    if dataset.tokenizer is None or dataset.tokenizer in store.pins():
        return
    with store.hold():
        store.put_all([(Cid.of(leaf), leaf) for leaf in leaves_of(raw)])
        store.put(encode_data_node(file_node(raw)), DAG_CBOR)
        store.pin(dataset.tokenizer, "tokenizer of a run")


class DatasetBlocks:
    """The blocks of a prepared folder. Thread-safe: nothing changes after the start."""

    def __init__(self, folder: Path) -> None:
        """Raises: StoreError."""
        self.root, dataset = read_dataset(folder)
        self._nodes: dict[Cid, Path] = {self.root: folder / DATASET}
        self._leaves: dict[Cid, tuple[Path, int, int]] = {}
        for file, cid in files_of(folder, dataset):
            self._nodes[cid] = node_path(file)
            node = read_node(file, cid)
            for i, leaf in enumerate(node.leaves):
                self._leaves[leaf] = (file, i * MAX_LEAF_BYTES, node.size_of(i))

    def __iter__(self) -> Iterator[Cid]:
        yield from self._nodes
        yield from self._leaves

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes; None where it is not here."""
        if cid in self._leaves:
            return self._leaves[cid][2]
        path = self._nodes.get(cid)
        try:
            return None if path is None else os.stat(path).st_size
        except OSError:  # somebody has removed it meanwhile
            return None

    def get(self, cid: Cid) -> bytes:
        """A block, checked. Raises: MissingBlockError."""
        path, at, size = self._leaves.get(cid) or (self._nodes.get(cid), 0, MAX_BLOCK_BYTES)
        if path is None:
            raise MissingBlockError(str(cid), "it is not of this data set")
        try:
            with opened(path) as file:
                file.seek(at)
                data = file.read(size)
        except StoreError as bad:
            raise MissingBlockError(str(cid), str(bad)) from bad
        if not cid.names(data):
            raise MissingBlockError(str(cid), f"{shown(path)} was changed after it was prepared")
        return data
