"""legion-ctl data: prepare text for training, look at what was prepared, and fetch what others have prepared."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from legion_p2p.cli.common import addresses_of_peers, at_least
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import print_json, progress_bar
from legion_p2p.cli.visitors import IdentityOption, NetworkKeyOption, TokenOption, visitor_by_options
from legion_p2p.errors import DecodeError, UsageError
from legion_p2p.files.paths import shown, user_path

if TYPE_CHECKING:
    from legion_p2p.train.datasets.preparation import Preparation
    from legion_p2p.train.datasets.sources import Sources

TRAINED_ON_CHARS = 1 << 28  # a tokenizer learns nothing more from more text

data = App(name="data", help="Prepare text for training, and look at what was prepared.")

_Json = Annotated[bool, Parameter(negative=(), help="Print the result as one line of JSON, and show no progress.")]
_Folder = Annotated[str, Parameter(help="A folder that `legion-ctl data prepare` has written.")]


@dataclass(frozen=True, kw_only=True)
class HowRead:
    """How documents are read."""

    field: str = "text"
    """The field of a JSON row or table column that holds the text."""
    weights: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative=(), metavar="SHARE...")] = ()
    """Shares of the tokens, one for each source; a source that has more than its share is cut. [default: all of every source]"""
    validation: float = 0.05
    """Share of the documents that is held out for measuring the loss; chosen by content."""
    end_of_text: Annotated[str, Parameter(metavar="TOKEN")] = ""
    """The token after each document. [default: the tokenizer's own, such as <|endoftext|>]"""
    skip_broken: Annotated[bool, Parameter(negative=())] = False
    """Skip and count rows that cannot be read, instead of stopping."""


@data.command
def prepare(
    sources: Annotated[tuple[str, ...], Parameter(metavar="SOURCE...")],
    /,
    *,
    out: Annotated[str, Parameter(metavar="DIR")],
    tokenizer: Annotated[str, Parameter(metavar="FILE")] = "",
    train_tokenizer: Annotated[int, Parameter(metavar="VOCAB")] = 0,
    how: Annotated[HowRead, Parameter(name="*")] = HowRead(),
    processes: Annotated[int, Parameter(validator=at_least(0))] = 0,
    json: _Json = False,
) -> int:
    """Turn text into shards of token ids, named by content. When it is started again, it continues where it was stopped.

    Example: legion-ctl data prepare books/ --train-tokenizer 8192 --out books-8k

    Parameters
    ----------
    sources
        Files and folders of text, JSON lines or Parquet tables, also packed with gzip, zstandard, bzip2 or xz; or hf:NAME for a
        data set of the library datasets, hf:NAME:CONFIG@SPLIT in full.
    out
        Folder for the data, made where it is missing.
    tokenizer
        A tokenizer.json, a folder with one, or bytes: every byte is a token. [default: bytes]
    train_tokenizer
        Train a byte-level BPE tokenizer with this many tokens on the text instead.
    processes
        Processes that work at the same time. [default: one per core]
    """
    from legion_p2p.observe.human import bytes_text, count_text, whole_text
    from legion_p2p.train.datasets.preparation import Preparation
    from legion_p2p.train.datasets.prepare import prepare as write
    from legion_p2p.train.datasets.sources import find_sources
    from legion_p2p.train.datasets.tokenizer import BYTES, Tokenizer, read_tokenizer

    if tokenizer and train_tokenizer:
        raise UsageError("--tokenizer gives a tokenizer, --train-tokenizer makes one: give one of them")
    folder = user_path(out)
    settings = Preparation(sources, how.weights, how.field, how.validation, how.skip_broken, how.end_of_text)
    settings.check()
    found = find_sources(sources, how.field)
    if train_tokenizer:
        used = Tokenizer(_trained(settings, found, train_tokenizer, folder, json), "the trained tokenizer", how.end_of_text)
    else:
        used = read_tokenizer(tokenizer or BYTES, how.end_of_text)
    with progress_bar(f"reading {bytes_text(found.n_bytes)}", found.n_bytes, json) as progress:
        made = write(settings, found, used, folder, processes=processes or os.cpu_count() or 1, progress=progress)
    if json:
        return print_json(made)
    left_out = f"; left out: {made.left_out}" if made.left_out else ""
    broken = f"; {whole_text(made.n_broken)} broken rows were left out" if made.n_broken else ""
    print(
        f"{shown(folder)} holds {count_text(made.n_tokens)} tokens of {whole_text(made.n_documents)} documents for training, and "
        f"{count_text(made.n_validation)} for validation{left_out}{broken}"
    )
    print(f"data set {made.cid}")
    print(f"to train on it: legion-peer --new-run NAME --data {shown(folder)}")
    return DONE


def _trained(settings: "Preparation", found: "Sources", vocab_size: int, folder: Path, quiet: bool) -> bytes:
    """A new tokenizer, or the existing one where an earlier preparation is continued."""
    from legion_p2p.core.dataset import MAX_TOKENIZER_BYTES
    from legion_p2p.files.reading import read_limited
    from legion_p2p.files.writing import make_folder, write_whole
    from legion_p2p.train.datasets.prepare import all_texts
    from legion_p2p.train.datasets.tokenizer import train_tokenizer

    path = make_folder(folder) / f"trained-{vocab_size}.json"
    if path.is_file():
        return read_limited(path, MAX_TOKENIZER_BYTES)
    with progress_bar("training the tokenizer", None, quiet, "texts") as progress:

        def counted(text: str) -> str:
            progress(1)
            return text

        raw = train_tokenizer(map(counted, all_texts(settings, found.tasks, TRAINED_ON_CHARS)), vocab_size)
    write_whole(path, raw)
    return raw


@data.command
def show(folder: _Folder, /, *, json: _Json = False) -> int:
    """Show what a prepared folder holds: its id, tokens and tokenizer."""
    from legion_p2p.observe.human import bytes_text, whole_text
    from legion_p2p.store.dataset_files import read_dataset

    cid, dataset = read_dataset(user_path(folder))
    n_held_back = sum(shard.n_tokens for shard in dataset.validation)
    tokenizer = str(dataset.tokenizer) if dataset.tokenizer else ""
    if json:
        return print_json({
            "cid": str(cid), "n_tokens": dataset.n_tokens, "n_validation": n_held_back, "vocab_size": dataset.vocab_size,
            "tokenizer": tokenizer, "n_shards": len(dataset.train),
        })  # fmt: skip
    facts = {
        "data set": str(cid), "tokens": f"{whole_text(dataset.n_tokens)} in {len(dataset.train)} shards",
        "for validation": whole_text(n_held_back), "vocabulary": whole_text(dataset.vocab_size),
        "tokenizer": tokenizer or "bytes", "size": bytes_text((dataset.n_tokens + n_held_back) * dataset.token_bytes),
    }  # fmt: skip
    for name, text in facts.items():
        print(f"{name:<15} {text}")
    return DONE


@data.command
def fetch(
    cid: Annotated[str, Parameter(help="The id of the data set.")],
    /,
    *,
    out: Annotated[str, Parameter(metavar="DIR")],
    initial_peers: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), converter=addresses_of_peers, metavar="ADDR...")
    ],
    run: Annotated[str, Parameter(metavar="NAME")] = "",
    identity: IdentityOption = "",
    token: TokenOption = "",
    network_key: NetworkKeyOption = "",
    json: _Json = False,
) -> int:
    """Fetch prepared data from all peers that have it. When it is started again, it continues where it was stopped.

    Example: legion-ctl data fetch CID --out books-8k --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...

    Parameters
    ----------
    out
        Folder for the data, made where it is missing.
    initial_peers
        Addresses of peers or bootstrap nodes to enter through; @FILE reads them from a file.
    run
        Name of a run whose members have the data.
    """
    from legion_p2p.core.addresses import parse_addresses
    from legion_p2p.core.cids import Cid
    from legion_p2p.observe.human import bytes_text
    from legion_p2p.train.datasets.fetch import fetch_dataset

    folder = user_path(out)
    try:
        root = Cid.parse(cid)
    except DecodeError as bad:
        raise UsageError(f"{bad}; legion-ctl data show prints ids of data sets") from bad
    with (
        visitor_by_options(network_key, run, identity, token) as visitor,
        progress_bar("fetching blocks", None, json, "bytes") as progress,
    ):
        fetched = fetch_dataset(root, parse_addresses(initial_peers), folder, run=run, visitor=visitor, progress=progress)
    if json:
        return print_json({"cid": str(root), "fetched": fetched})
    n_bytes, n_peers = (0, 0) if fetched is None else (fetched.n_bytes, len(fetched.from_whom))
    print(f"{shown(folder)} holds data set {root}: {bytes_text(n_bytes)} were fetched from {n_peers} peers")
    return DONE


@data.command
def verify(folder: _Folder, /, *, json: _Json = False) -> int:
    """Read all of a prepared folder and check it against its id. Prints what was changed and exits with 1 if anything was."""
    from legion_p2p.errors import MissingBlockError
    from legion_p2p.store.dataset_files import DatasetBlocks

    blocks = DatasetBlocks(user_path(folder))
    problems = []
    with progress_bar("reading blocks", sum(blocks.size_of(cid) or 0 for cid in blocks), json) as progress:
        for cid in blocks:
            try:
                progress(len(blocks.get(cid)))
            except MissingBlockError as bad:
                problems.append(str(bad))
    if json:
        print_json({"cid": str(blocks.root), "ok": not problems, "problems": problems})
    elif problems:
        print("\n".join(problems[:20]))
    else:
        print(f"{shown(folder)} is whole: data set {blocks.root}")
    return FAILED if problems else DONE
