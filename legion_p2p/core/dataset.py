"""What a prepared data set is, as DAG-CBOR nodes that name each other by content, like a checkpoint (core/manifest.py).

    Dataset      the id of a data set is the CID of this node
     |- tokenizer   a FileNode: the tokenizer.json by which the text became tokens; none where tokens are bytes
     |- train       a FileNode for each shard: a .bin of token ids
     `- validation  the same, of the text that is held back

Nothing in it depends on who prepared it, when, or under which names: the same text and the same tokenizer give the same id.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import MAX_BLOCK_BYTES, MAX_LEAF_BYTES
from legion_p2p.errors import DecodeError, UsageError

FORMAT = 1
MAX_DATA_SHARDS = 8192  # about 50 bytes each in one block of 1 MiB
MAX_SHARD_BYTES = 1 << 28  # 512 leaves; with as many shards as there may be, 2 TiB of tokens
MAX_TOKENIZER_BYTES = 64 << 20  # those of the largest vocabularies have 30 MB
MAX_VOCABULARY = 1 << 25  # as in core/model_config.py

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
_MAX_LEAVES = MAX_SHARD_BYTES // MAX_LEAF_BYTES


class FileNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file, cut into leaves of MAX_LEAF_BYTES each, the last one what remains."""

    n_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_SHARD_BYTES)]
    leaves: Annotated[tuple[Cid, ...], msgspec.Meta(min_length=1, max_length=_MAX_LEAVES)]

    def size_of(self, leaf: int) -> int:
        return min(MAX_LEAF_BYTES, self.n_bytes - leaf * MAX_LEAF_BYTES)


class DataShard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the tokens."""

    file: Cid
    n_tokens: _Count


_Shards = Annotated[tuple[DataShard, ...], msgspec.Meta(max_length=MAX_DATA_SHARDS)]


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_VOCABULARY)]
    token_bytes: Annotated[int, msgspec.Meta(ge=1, le=4)]
    end_of_text: Annotated[int, msgspec.Meta(ge=0, lt=MAX_VOCABULARY)] | None
    """The token after each document; None: there is none."""
    tokenizer: Cid | None
    train: _Shards
    validation: _Shards
    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)] = FORMAT

    @property
    def n_tokens(self) -> int:
        """For training."""
        return sum(shard.n_tokens for shard in self.train)


DataNode = Dataset | FileNode
T = TypeVar("T", Dataset, FileNode)


def encode_data_node(node: DataNode) -> bytes:
    """The bytes of its block. Raises: UsageError, if they are more than a block may have."""
    data = dagcbor.encode(_plain(node))
    if len(data) > MAX_BLOCK_BYTES:
        raise UsageError(f"a {type(node).__name__} of {len(data)} bytes, at most {MAX_BLOCK_BYTES}: make fewer, larger shards")
    return data


def data_cid(node: DataNode) -> Cid:
    return Cid.of(encode_data_node(node), DAG_CBOR)


def decode_dataset(data: bytes) -> Dataset:
    """Raises: DecodeError."""
    dataset = _decode(data, Dataset)
    if dataset.token_bytes == 3 or dataset.vocab_size > 256**dataset.token_bytes:
        raise DecodeError(f"a data set of {dataset.vocab_size} tokens in {dataset.token_bytes} bytes each")
    if dataset.end_of_text is not None and dataset.end_of_text >= dataset.vocab_size:
        raise DecodeError(f"a data set whose last token is {dataset.end_of_text}, in a vocabulary of {dataset.vocab_size}")
    return dataset


def decode_file(data: bytes) -> FileNode:
    """Raises: DecodeError."""
    node = _decode(data, FileNode)
    if -(-node.n_bytes // MAX_LEAF_BYTES) != len(node.leaves):
        raise DecodeError(f"a file of {node.n_bytes} bytes in {len(node.leaves)} leaves")
    return node


def file_node(data: bytes) -> FileNode:
    """The node of a small file."""
    return FileNode(len(data), tuple(Cid.of(leaf) for leaf in leaves_of(data)))


def leaves_of(data: bytes) -> list[bytes]:
    return [data[at : at + MAX_LEAF_BYTES] for at in range(0, len(data), MAX_LEAF_BYTES)]


def file_bytes(cid: Cid, get: Callable[[Cid], bytes]) -> bytes:
    """A small file out of blocks. Raises: DecodeError; what `get` raises where one is missing."""
    return b"".join(get(leaf) for leaf in decode_file(get(cid)).leaves)


def _decode(data: bytes, kind: type[T]) -> T:
    if len(data) > MAX_BLOCK_BYTES:
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes, at most {MAX_BLOCK_BYTES}")
    value = dagcbor.decode(data)
    try:
        node = msgspec.convert(value, kind)
    except msgspec.ValidationError as bad:
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes: {bad}") from bad
    if _plain(node) != value:
        raise DecodeError(f"{kind.__name__} of {len(data)} bytes is not written as such nodes are")
    return node


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
