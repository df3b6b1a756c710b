"""The data that a run names: fetched from members that have it, and compared before anybody trains."""

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from legion_p2p.config import NewRun, Peer, Store
from legion_p2p.core.cids import Cid
from legion_p2p.core.run import RunSpec, sign_spec
from legion_p2p.errors import DecodeError, IncompatibleModelError, MissingDataError, StoreError, UsageError
from legion_p2p.files.writing import make_folder
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.sim.network import World
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.dataset_files import DatasetBlocks
from legion_p2p.train.datasets.fetch import fetch_blocks, write_files
from legion_p2p.train.datasets.preparation import Preparation
from legion_p2p.train.datasets.prepare import prepare
from legion_p2p.train.datasets.prepared import open_prepared, with_data
from legion_p2p.train.datasets.sources import find_sources
from legion_p2p.train.datasets.tokenizer import Tokenizer, train_tokenizer
from legion_p2p.train.described import described, shape_of
from legion_p2p.train.run_text import data_folder, fetch_missing, open_run_text, shared_by
from tests.checkpoint_of import FOUNDER
from tests.context_of import inline
from tests.unit.test_block_exchange import Directory, Provider, identity

TEXTS = [f"the {i}th line of a story that has many" for i in range(200)]


def data_in(folder: Path, texts: list[str], vocab_size: int = 0) -> str:
    """A prepared folder, its tokens bytes or those of a new tokenizer."""
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = Preparation((str(file),), validation=0.2)
    tokenizer = Tokenizer(train_tokenizer(texts, vocab_size), "mine") if vocab_size else Tokenizer()
    prepare(settings, find_sources(settings.sources, "text"), tokenizer, folder)
    return str(folder)


def run_on(data: str, **fields: Any) -> RunSpec:
    return described(with_data(NewRun("books", preset="xxs", data="books", **fields), data))


def opened(spec: RunSpec, data: str) -> Any:
    return open_run_text(spec, data, shape_of(spec), Events())


def test_a_run_names_the_data_that_it_is_created_with(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    data = data_in(tmp_path / "data", TEXTS, 300)

    spec = run_on(data)

    folder = open_prepared(data)
    assert folder is not None
    assert (spec.dataset, spec.tokenizer) == (str(folder.cid), str(folder.dataset.tokenizer))
    assert shape_of(spec).vocab_size == 300  # a preset whose tokens are bytes takes the data's
    assert shape_of(run_on(data, model={"vocab_size": 512})).vocab_size == 512
    assert opened(spec, data).vocab_size == 300


def test_text_that_was_not_prepared_is_named_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))

    spec = run_on(str(tmp_path / "a.txt"))

    assert (spec.dataset, spec.tokenizer) == ("", "") and opened(spec, str(tmp_path / "a.txt")).prepared is None


def test_whoever_has_other_data_is_told_what_differs(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    spec = run_on(data_in(tmp_path / "data", TEXTS, 300))

    with pytest.raises(UsageError, match="other text by the same tokenizer: leave out --data to fetch it"):
        settings = Preparation((str(tmp_path / "data.jsonl"),), validation=0.5)
        tokenizer = Tokenizer((tmp_path / "data" / "tokenizer.json").read_bytes(), "mine")
        prepare(settings, find_sources(settings.sources, "text"), tokenizer, tmp_path / "other")
        opened(spec, str(tmp_path / "other"))
    with pytest.raises(UsageError, match="made by another tokenizer"):
        opened(spec, data_in(tmp_path / "bytes", TEXTS))
    with pytest.raises(UsageError, match=r"data.jsonl was not prepared"):
        opened(spec, str(tmp_path / "data.jsonl"))


def test_a_model_with_too_few_tokens_for_the_data_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    data = data_in(tmp_path / "data", TEXTS, 300)

    with pytest.raises(
        IncompatibleModelError, match="token ids up to 299, the run's model knows 257; a run with a vocab_size of 300"
    ):
        opened(run_on(data, model={"vocab_size": 257}), data)


def test_a_peer_without_the_data_learns_its_id_and_a_stranger_s_run_reads_no_file_here(tmp_path: Path) -> None:
    spec = run_on(data_in(tmp_path / "data", TEXTS))

    with pytest.raises(MissingDataError, match=f"trains on the prepared data {spec.dataset}, which is not here") as missing:
        opened(spec, "")
    assert missing.value.dataset == spec.dataset
    peer = Peer(store=Store(path=str(tmp_path / "store")))
    with pytest.raises(MissingDataError):  # nobody to fetch it from
        fetch_missing(missing.value, (), peer, Events())
    there = tmp_path / "store-data" / spec.dataset
    shutil.copytree(tmp_path / "data", there)  # fetched before
    assert fetch_missing(missing.value, (), peer, Events()) == str(there)


def test_ids_in_a_specification_are_ids(tmp_path: Path) -> None:
    for field in ("dataset", "tokenizer"):
        with pytest.raises(UsageError, match=rf"{field}: .* is not a CID"):
            sign_spec(RunSpec(**{**_fields(run_on("")), "creator": FOUNDER.peer_id, field: "../../etc/passwd"}), FOUNDER)


def _fields(spec: RunSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def test_what_a_peer_trains_on_it_gives_to_others_if_it_has_a_store(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", TEXTS)
    peer = Peer(store=Store(path=str(tmp_path / "store")))

    assert shared_by(peer, data).store.shared == (data,)
    assert shared_by(peer, str(tmp_path / "data.jsonl")) == peer
    assert shared_by(Peer(), data) == Peer()
    assert data_folder(str(tmp_path / "store")) == tmp_path / "store-data"


async def fetched(folder: Path, data: str, out: Path, max_bytes: int = 0) -> Cid:
    """Fetch what a peer of a simulated network shares, and write its files."""
    make_folder(out)
    shared = DatasetBlocks(Path(data))
    async with World() as world:
        with BlockStore(folder / "given") as given, BlockStore(folder / "got") as got:
            provider = Provider(world, "a", given, [shared])
            assert provider.archive.shared == (shared.root,)
            asker, directory = world.join(identity("asker")), Directory([provider])
            fetcher = Fetcher(asker.messenger, directory, got, inline, Events())  # type: ignore[arg-type]
            await fetch_blocks(fetcher, shared.root, max_bytes)
            write_files(shared.root, got, out)
    return shared.root


async def test_prepared_data_comes_from_a_peer_that_shares_it(tmp_path: Path, autojump_clock: object) -> None:
    data = data_in(tmp_path / "data", TEXTS)

    root = await fetched(tmp_path, data, tmp_path / "out")

    here = open_prepared(tmp_path / "out")
    assert here is not None and here.cid == root
    same = filecmp.dircmp(tmp_path / "out", data)
    assert same.left_only == same.diff_files == [] and "train-00000.bin" in same.same_files


async def test_data_larger_than_this_peer_allows_is_not_fetched(tmp_path: Path, autojump_clock: object) -> None:
    data = data_in(tmp_path / "data", TEXTS)

    with pytest.raises(StoreError, match=r"takes about .* and at most 1\.00 kB are allowed: raise --store-max-gb"):
        await fetched(tmp_path, data, tmp_path / "out", max_bytes=1000)


async def test_what_is_no_data_set_is_refused_before_the_bulk_of_it(tmp_path: Path, autojump_clock: object) -> None:
    data = data_in(tmp_path / "data", TEXTS)
    shared = DatasetBlocks(Path(data))
    async with World() as world:
        with BlockStore(tmp_path / "given") as given, BlockStore(tmp_path / "got") as got:
            provider = Provider(world, "a", given, [shared])
            asker, directory = world.join(identity("asker")), Directory([provider])
            fetcher = Fetcher(asker.messenger, directory, got, inline, Events())  # type: ignore[arg-type]
            node = next(cid for cid in shared if cid.codec == "dag-cbor" and cid != shared.root)
            with pytest.raises(DecodeError):
                await fetch_blocks(fetcher, node, 0)
