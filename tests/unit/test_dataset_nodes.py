"""The nodes of a prepared data set: read as they were written, bounded, and nothing else is read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import (
    MAX_DATA_SHARDS,
    MAX_SHARD_BYTES,
    Dataset,
    DataShard,
    FileNode,
    data_cid,
    decode_dataset,
    decode_file,
    encode_data_node,
    file_bytes,
    file_node,
    leaves_of,
)
from legion_p2p.core.manifest import MAX_BLOCK_BYTES, MAX_LEAF_BYTES, links_of
from legion_p2p.errors import DecodeError, LegionError

LEAF = Cid.of(b"leaf")
FILE = FileNode(3, (LEAF,))
DATASET = Dataset(300, 2, 0, data_cid(FILE), (DataShard(data_cid(FILE), 100),), (DataShard(data_cid(FILE), 5),))


def test_nodes_come_back_as_they_were() -> None:
    assert decode_file(encode_data_node(FILE)) == FILE
    assert decode_dataset(encode_data_node(DATASET)) == DATASET


def test_whoever_fetches_the_root_finds_all_files() -> None:
    assert set(links_of(encode_data_node(DATASET))) == {data_cid(FILE)}
    assert links_of(encode_data_node(FILE)) == (LEAF,)


@given(st.binary(min_size=1, max_size=64))
def test_a_small_file_comes_out_of_its_blocks(data: bytes) -> None:
    node = file_node(data * (1 + MAX_LEAF_BYTES // 8))
    blocks = {Cid.of(leaf): leaf for leaf in leaves_of(data * (1 + MAX_LEAF_BYTES // 8))}
    blocks[data_cid(node)] = encode_data_node(node)

    assert file_bytes(data_cid(node), blocks.__getitem__) == data * (1 + MAX_LEAF_BYTES // 8)


@pytest.mark.parametrize(
    "change",
    [
        {"token_bytes": 3}, {"token_bytes": 1}, {"token_bytes": 5}, {"vocab_size": 0}, {"vocab_size": 1 << 26},
        {"end_of_text": 300},
        {"format": 2}, {"tokenizer": "text"}, {"train": 3}, {"more": 1}, {"train": [{"file": LEAF, "n_tokens": -1}]},
        {"train": [{"file": LEAF, "n_tokens": 1}] * (MAX_DATA_SHARDS + 1)},
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    raw = dagcbor.encode({**dagcbor.decode(encode_data_node(DATASET)), **change})

    with pytest.raises(DecodeError):
        decode_dataset(raw)


@pytest.mark.parametrize("node", [
    {"n_bytes": 0, "leaves": [LEAF]}, {"n_bytes": MAX_SHARD_BYTES + 1, "leaves": [LEAF]}, {"n_bytes": 3, "leaves": [LEAF, LEAF]},
    {"n_bytes": 3, "leaves": []}, {"n_bytes": MAX_LEAF_BYTES + 1, "leaves": [LEAF]},
])  # fmt: skip
def test_a_file_whose_leaves_cannot_hold_it_is_refused(node: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        decode_file(dagcbor.encode(node))


def test_a_node_larger_than_a_block_is_not_read() -> None:
    with pytest.raises(DecodeError, match="at most"):
        decode_dataset(bytes(MAX_BLOCK_BYTES + 1))


@given(st.binary(max_size=200))
def test_garbage_is_a_decode_error(data: bytes) -> None:
    for decode in (decode_dataset, decode_file):
        try:
            decode(data)
        except LegionError:
            continue
        raise AssertionError


def test_as_many_shards_as_there_may_be_fit_into_a_block() -> None:
    most = (DataShard(data_cid(FILE), (1 << 53) - 1),) * MAX_DATA_SHARDS

    assert len(encode_data_node(msgspec.structs.replace(DATASET, train=most))) <= MAX_BLOCK_BYTES
    assert len(encode_data_node(FileNode(MAX_SHARD_BYTES, (LEAF,) * (MAX_SHARD_BYTES // MAX_LEAF_BYTES)))) <= MAX_BLOCK_BYTES
