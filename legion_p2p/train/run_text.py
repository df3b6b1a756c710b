"""The text that a peer trains on in a run: its own, or the prepared data that the run names."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from legion_p2p.config import Peer
from legion_p2p.core.cids import Cid
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import IncompatibleModelError, MissingDataError, UsageError
from legion_p2p.files.paths import shown, user_data_folder, user_path
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.store.dataset_files import is_dataset
from legion_p2p.train.corpus import BUILT_IN, Corpus, open_text
from legion_p2p.train.datasets.fetch import fetch_dataset
from legion_p2p.train.datasets.prepared import open_prepared
from legion_p2p.train.datasets.source_names import is_stream
from legion_p2p.train.described import Shape
from legion_p2p.train.streamed_text import check_tokenizer_use, open_stream
from legion_p2p.visit import visitor_of

_FETCH = "leave out --data to fetch it from other members, or legion-ctl data fetch {} --out FOLDER --initial-peers ADDR does"


def open_run_text(spec: RunSpec, given: str, shape: Shape, events: Events, tokenizer: str = "") -> Corpus:
    """The text to train on; `given` names this peer's own, and `tokenizer` the file of that of text that is streamed.

    Raises: MissingDataError, if the run trains on prepared data and none is given; UsageError, if another one is, or none;
    IncompatibleModelError, if the model does not know its tokens; StoreError, if it cannot be read.
    """
    source = check_source(spec, given)
    events.emit(PHASE, text=f"reading the text ({shown(source)})")
    check_tokenizer_use(source, tokenizer)
    is_streamed = is_stream(source)
    corpus = open_stream(spec, source, tokenizer, shape.context) if is_streamed else open_text(source, shape.context)
    check_data(spec, corpus)
    if corpus.left_out:
        events.emit("data.left_out", text=f"{shown(source)}: {corpus.left_out} left out, which are no text")
    if corpus.vocab_size > shape.vocab_size:
        told = f"token ids up to {corpus.vocab_size - 1}, the run's model knows {shape.vocab_size}"
        raise IncompatibleModelError(f"{source}: {told}; a run with a vocab_size of {corpus.vocab_size} or more can train on it")
    return corpus


def check_source(spec: RunSpec, given: str) -> str:
    """Where the text to train on comes from. Raises: MissingDataError, UsageError, as `open_run_text`, without reading it."""
    if not given and spec.dataset:
        raise MissingDataError(spec.name, spec.dataset, "" if spec.admission == "open" else spec.creator)
    if not given and spec.data not in BUILT_IN:
        # A stranger's specification must not choose what is read from this disk.
        raise UsageError(f"run {spec.name!r} trains on {spec.data!r}: give the text that you have of it with --data")
    return given or spec.data


def check_data(spec: RunSpec, corpus: Corpus) -> None:
    """That the data is what the run names. Raises: UsageError, telling what differs, and what to do."""
    if not spec.dataset:
        return
    prepared = corpus.prepared
    wanted = f"run {spec.name!r} trains on the prepared data {spec.dataset}"
    if prepared is None:
        raise UsageError(f"{wanted}, and {corpus.name} was not prepared: {_FETCH.format(spec.dataset)}")
    if str(prepared.cid) != spec.dataset:
        same = str(prepared.dataset.tokenizer or "") == spec.tokenizer
        what = "other text by the same tokenizer" if same else "made by another tokenizer"
        raise UsageError(f"{wanted}, and {corpus.name} is {prepared.cid}, {what}: {_FETCH.format(spec.dataset)}")


def shared_by(peer: Peer, data: str) -> Peer:
    """The peer, which gives the prepared data that it trains on to others that ask."""
    if not data or not peer.store.path or open_prepared(data) is None:
        return peer
    shared = tuple(dict.fromkeys((*peer.store.shared, data)))
    return msgspec.structs.replace(peer, store=msgspec.structs.replace(peer.store, shared=shared))


def fetch_missing(missing: MissingDataError, contacts: Sequence[str], peer: Peer, events: Events) -> str:
    """Fetch the data that a run names from its members; the folder where it is then. Raises: as `fetch_dataset`."""
    folder = data_folder(peer.store.path) / missing.dataset
    if is_dataset(folder):  # fetched before
        return str(folder)
    if not contacts:
        raise missing
    events.emit(PHASE, text=f"fetching the data of the run into {shown(folder)}")
    run = f"{missing.run}@{missing.creator}" if missing.creator else missing.run
    with visitor_of(peer, as_itself=bool(missing.creator)) as visitor:
        fetch_dataset(
            Cid.parse(missing.dataset), contacts, folder, run=run, visitor=visitor, max_bytes=round(peer.store.max_gb * 1e9)
        )
    return str(folder)


def data_folder(store: str) -> Path:
    """Where fetched data goes: beside the store, where there is one."""
    if not store:
        return user_data_folder() / "data"
    path = user_path(store)
    return path.with_name(f"{path.name}-data")
