"""What stands beside a saved model, so that transformers loads the folder: its configuration, and the tokenizer of its data."""

import json
from collections.abc import Callable
from pathlib import Path

from legion_p2p.core.cids import Cid
from legion_p2p.core.dataset import data_cid, file_bytes, file_node
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import LegionError, MissingBlockError, UsageError
from legion_p2p.files.writing import write_whole
from legion_p2p.store.dataset_files import TOKENIZER
from legion_p2p.train.datasets.tokenizer import Tokenizer, read_tokenizer, tokenizer_config
from legion_p2p.train.layouts import layout_of
from legion_p2p.train.side_file import CONFIG

TOKENIZER_CONFIG = "tokenizer_config.json"


def write_companions(folder: Path, spec: RunSpec, tokenizer: bytes) -> None:
    """Write config.json where transformers knows the model, and the tokenizer.json where there is one.

    Raises: StoreError; DiskFullError.
    """
    config = layout_of(spec).config or {}
    context = int(config.get("n_positions") or config.get("max_position_embeddings") or spec.inner.context)
    end_of_text = _write_tokenizer(folder, tokenizer, context) if tokenizer else None
    if config:
        ends = {} if end_of_text is None else {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
        write_whole(folder / CONFIG, (json.dumps({**config, **ends}, indent=2) + "\n").encode())


def _write_tokenizer(folder: Path, raw: bytes, context: int) -> int | None:
    """As transformers reads it; the id of the token that ends a text."""
    write_whole(folder / TOKENIZER, raw)
    try:
        tokenizer = Tokenizer(raw, TOKENIZER)
    except LegionError:  # without the library tokenizers, nobody knows what ends a text
        return None
    write_whole(folder / TOKENIZER_CONFIG, (json.dumps(tokenizer_config(tokenizer, context), indent=2) + "\n").encode())
    return tokenizer.end_of_text


def stored_tokenizer(spec: RunSpec, get: Callable[[Cid], bytes]) -> bytes:
    """The tokenizer.json of the run's data, out of blocks; empty, where it is not among them, or tokens are bytes."""
    if not spec.tokenizer:
        return b""
    try:
        return file_bytes(Cid.parse(spec.tokenizer), get)
    except MissingBlockError:
        return b""


def tokenizer_cid(raw: bytes) -> str:
    """What a run calls this tokenizer.json; empty where tokens are bytes."""
    return str(data_cid(file_node(raw))) if raw else ""


def checked_tokenizer(spec: RunSpec, source: str) -> bytes:
    """The tokenizer.json at `source`, a prepared folder or the file. Raises: UsageError, if it is not the run's; StoreError."""
    raw = read_tokenizer(source).raw
    cid = tokenizer_cid(raw)
    if spec.tokenizer and cid != spec.tokenizer:
        raise UsageError(f"{source} is the tokenizer {cid}, and run {spec.name!r} has {spec.tokenizer}")
    return raw
