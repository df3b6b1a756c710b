"""A prepared folder as what a trainer reads."""

import functools
from pathlib import Path

import msgspec

from legion_p2p.config import NewRun
from legion_p2p.config.new_run import DEFAULT_PRESET
from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import Dataset, DataShard
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.store.dataset_files import check_tokenizer, is_dataset, read_dataset, shard_path
from legion_p2p.train.gpt_config import PRESETS
from legion_p2p.train.tokens import DTYPES, FileTokens, ShardedTokens, Tokens, copied_if_few, stored_tokens

MAX_OPEN_SHARDS = 64  # files of each part: a batch reads from a few of them


class PreparedFolder(msgspec.Struct, frozen=True):
    """What is in it. Tokens are read when they are needed."""

    path: str
    cid: Cid
    dataset: Dataset
    tokenizer: bytes
    """Its tokenizer.json; empty: tokens are bytes."""

    def tokens(self, part: str) -> Tokens:
        """Of `train` or `validation`. Raises: StoreError."""
        shards: tuple[DataShard, ...] = getattr(self.dataset, part)

        @functools.lru_cache(MAX_OPEN_SHARDS)
        def opened(index: int) -> FileTokens:
            return self._shard(part, index, shards[index])

        sharded = ShardedTokens([shard.n_tokens for shard in shards], DTYPES[self.dataset.token_bytes], opened)
        return copied_if_few(sharded)

    def _shard(self, part: str, index: int, shard: DataShard) -> FileTokens:
        path = shard_path(Path(self.path), part, index)
        try:
            file = open(path, "rb")  # noqa: SIM115 (tokens are read from it as long as anybody has them)
        except OSError as gone:
            raise StoreError(f"cannot read {shown(path)} any more: {gone.strerror}") from gone
        tokens = stored_tokens(path, file)
        if (len(tokens), tokens.dtype, tokens.vocab_size) != (
            shard.n_tokens, DTYPES[self.dataset.token_bytes], self.dataset.vocab_size,
        ):  # fmt: skip
            raise StoreError(f"{shown(path)} is not the shard that the data set names; prepare or fetch the data again")
        return tokens


def open_prepared(source: str | Path) -> PreparedFolder | None:
    """The prepared data in a folder; None, if it is another kind of source. Raises: StoreError."""
    if not source:
        return None
    path = user_path(source)
    if kind_of(path) is not FileKind.FOLDER or not is_dataset(path):
        return None
    cid, dataset = read_dataset(path)
    return PreparedFolder(str(path), cid, dataset, check_tokenizer(path, dataset))


def with_data(new_run: NewRun, source: str) -> NewRun:
    """A run to create, which trains on the data behind `source`: where that is prepared, the run names it by its id.

    A preset whose tokens are bytes gets the vocabulary of the data, unless another one was chosen.
    """
    prepared = open_prepared(source)
    if prepared is None:
        return new_run
    tokenizer = prepared.dataset.tokenizer
    return msgspec.structs.replace(
        with_vocabulary(new_run, prepared.dataset.vocab_size),
        dataset=str(prepared.cid), tokenizer="" if tokenizer is None else str(tokenizer),
    )  # fmt: skip


def with_vocabulary(new_run: NewRun, vocab_size: int) -> NewRun:
    """A preset whose tokens are bytes gets this vocabulary, unless another one was chosen."""
    is_of_bytes = not (new_run.architecture or new_run.start_from) and PRESETS[new_run.preset or DEFAULT_PRESET].vocab_size == 256
    if not is_of_bytes or "vocab_size" in new_run.model:
        return new_run
    return msgspec.structs.replace(new_run, model={**new_run.model, "vocab_size": vocab_size})
