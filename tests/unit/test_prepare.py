"""Text from files of many kinds becomes token shards: the same ones however it is done, and what is broken is told."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from legion_p2p.errors import LegionError, MissingBlockError, StoreError, UsageError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.dataset_files import DatasetBlocks, keep_tokenizer, read_dataset
from legion_p2p.train.corpus import open_text
from legion_p2p.train.datasets import documents, sources, work
from legion_p2p.train.datasets.preparation import Preparation, Prepared
from legion_p2p.train.datasets.prepare import all_texts, prepare
from legion_p2p.train.datasets.prepared import open_prepared
from legion_p2p.train.datasets.sources import find_sources
from legion_p2p.train.datasets.tokenizer import END_OF_TEXT, Tokenizer, read_tokenizer, train_tokenizer
from legion_p2p.train.tokens import write_tokens

SENTENCE = "the quick brown fox jumps over the lazy dog and runs away into a forest of tall pines"
WORDS = SENTENCE.split()


def story(seed: int, n_words: int = 60) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, n_words))


def rows(n: int, first: int = 0) -> str:
    return "".join(json.dumps({"text": story(i), "id": i}) + "\n" for i in range(first, first + n))


def prepared(source: Path | str, out: Path, tokenizer: Tokenizer | None = None, **settings: Any) -> Prepared:
    asked = Preparation((str(source),), **settings)
    return prepare(asked, find_sources(asked.sources, asked.field), tokenizer or Tokenizer(), out)


def text_in(out: Path) -> str:
    """What was prepared as bytes, for training."""
    folder = open_prepared(out)
    assert folder is not None
    tokens = folder.tokens("train")
    return bytes(tokens if isinstance(tokens, np.ndarray) else tokens.read(0, len(tokens))).decode()


def write_parquet(path: Path, texts: list[str | None], column: str = "text", rows_in_group: int = 3) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({column: texts, "n": list(range(len(texts)))}), path, row_group_size=rows_in_group)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda raw: b"".join(zstandard.ZstdCompressor().compress(raw[at : at + 999]) for at in range(0, len(raw), 999)),
}  # fmt: skip


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and pieces of a few hundred bytes, so that there are many."""
    monkeypatch.setattr(sources, "TASK_BYTES", 700)
    monkeypatch.setattr(documents, "PIECE_BYTES", 300)


def test_a_folder_of_text_becomes_documents_with_an_end_each(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.txt").write_text(story(i))
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))

    made = prepared(tmp_path / "in", tmp_path / "out", validation=0.0)

    assert text_in(tmp_path / "out") == "".join(story(i) + "\0" for i in range(3))
    assert (made.n_documents, made.n_validation, made.left_out) == (3, 0, "1 a PNG image")


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_packed_files_are_read_like_plain_ones(tmp_path: Path, packed: str, name: str) -> None:
    raw = (story(0) if name == "a.txt" else rows(20)).encode()
    (tmp_path / name).write_bytes(raw)
    (tmp_path / f"{name}.{packed}").write_bytes(PACKERS[packed](raw))

    plain = prepared(tmp_path / name, tmp_path / "plain")

    assert prepared(tmp_path / f"{name}.{packed}", tmp_path / "packed").cid == plain.cid


@pytest.mark.parametrize("packed", PACKERS)
def test_a_packed_file_that_was_cut_off_is_told_by_name(tmp_path: Path, packed: str) -> None:
    file = tmp_path / f"a.jsonl.{packed}"
    file.write_bytes(PACKERS[packed](rows(50).encode())[:-20])

    with pytest.raises(StoreError, match=rf"a\.jsonl\.{packed}"):
        prepared(file, tmp_path / "out")


def test_parquet_and_json_lines_of_the_same_rows_are_the_same_data(tmp_path: Path, small_tasks: None) -> None:
    write_parquet(tmp_path / "a.parquet", [story(i) for i in range(10)])
    (tmp_path / "a.jsonl").write_text(rows(10))

    one, other = prepared(tmp_path / "a.parquet", tmp_path / "p"), prepared(tmp_path / "a.jsonl", tmp_path / "j")

    assert text_in(tmp_path / "p") == text_in(tmp_path / "j")
    assert (one.n_documents, one.n_tokens) == (other.n_documents, other.n_tokens) == (10, one.n_tokens)


def test_rows_of_a_large_file_are_each_read_once_wherever_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(rows(30))
    whole = "".join(story(i) + "\0" for i in range(30))

    for task_bytes in (211, 419, 420, 5000):
        monkeypatch.setattr(sources, "TASK_BYTES", task_bytes)
        out = tmp_path / f"out{task_bytes}"
        assert prepared(tmp_path / "a.jsonl", out, validation=0.0).n_documents == 30
        assert text_in(out) == whole


def test_a_long_text_in_pieces_is_one_document(tmp_path: Path, small_tasks: None) -> None:
    text = "\n".join(f"zeile {i} äöü {story(i)}" for i in range(40)) + "ß" * 2000  # its last line has no end for long
    (tmp_path / "a.txt").write_text(text)

    made = prepared(tmp_path / "a.txt", tmp_path / "out", validation=0.0)

    assert text_in(tmp_path / "out") == text + "\0" and made.n_documents == 1


def test_any_number_of_processes_gives_the_same_data_set(tmp_path: Path, small_tasks: None) -> None:
    (tmp_path / "a.jsonl").write_text(rows(40))
    settings = Preparation((str(tmp_path / "a.jsonl"),))
    found = find_sources(settings.sources, "text")
    assert len(found.tasks) > 8
    done: list[int] = []

    alone = prepare(settings, found, Tokenizer(), tmp_path / "one")
    shared = prepare(settings, found, Tokenizer(), tmp_path / "two", processes=2, progress=done.append)

    assert alone == shared and sum(done) == found.n_bytes


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, small_tasks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(rows(40))
    whole = prepared(tmp_path / "a.jsonl", tmp_path / "whole")
    done: list[int] = []

    def stopped_at(limit: int) -> Callable[..., None]:
        def do_task(asked: work.Work, tokenizer: Tokenizer, index: int, task: sources.Task) -> None:
            if index == limit:
                raise KeyboardInterrupt
            done.append(index)
            work.do_task(asked, tokenizer, index, task)

        return do_task

    for limit in (3, 7, -1):
        monkeypatch.setattr("legion_p2p.train.datasets.prepare.do_task", stopped_at(limit))
        if limit < 0:
            assert prepared(tmp_path / "a.jsonl", tmp_path / "out") == whole
        else:
            with pytest.raises(KeyboardInterrupt):
                prepared(tmp_path / "a.jsonl", tmp_path / "out")
    assert done == list(range(len(done))) and len(done) > 8  # each once
    assert not (tmp_path / "out" / "parts").exists()
    assert prepared(tmp_path / "a.jsonl", tmp_path / "out") == whole  # nothing is left to do


def test_it_goes_on_after_it_was_stopped_while_the_shards_got_their_names(
    tmp_path: Path, small_tasks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text(rows(40))
    whole = prepared(tmp_path / "a.jsonl", tmp_path / "whole")
    real = os.replace
    left = [12]

    def failing(old: Any, new: Any) -> None:
        if "train-" in os.fspath(new):
            left[0] -= 1
            if not left[0]:
                raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr("legion_p2p.train.datasets.assemble.os.replace", failing)
    with pytest.raises(StoreError, match="input/output error"):
        prepared(tmp_path / "a.jsonl", tmp_path / "out")
    left[0] = -1

    assert prepared(tmp_path / "a.jsonl", tmp_path / "out").cid == whole.cid


def test_a_folder_with_another_preparation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows(5))
    prepared(tmp_path / "a.jsonl", tmp_path / "out")

    with pytest.raises(UsageError, match="with other settings"):
        prepared(tmp_path / "a.jsonl", tmp_path / "out", validation=0.5)
    (tmp_path / "a.jsonl").write_text(rows(6))
    with pytest.raises(UsageError, match="files that were changed since"):
        prepared(tmp_path / "a.jsonl", tmp_path / "out")
    (tmp_path / "other").mkdir()
    write_tokens(tmp_path / "other" / "mine.bin", np.zeros(4, np.uint8), 256)
    with pytest.raises(UsageError, match="holds other data"):
        prepared(tmp_path / "a.jsonl", tmp_path / "other")


@pytest.mark.parametrize(("row", "told"), [
    ("{broken", "line 3: not JSON"), ('{"body": "x"}', "line 3: no text under 'text'; it has"), ("[1]", "line 3: no text under"),
    ('{"text": null}', "line 3: no text under"), ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "line 3"),
])  # fmt: skip
def test_a_broken_row_is_told_by_file_and_line_and_can_be_left_out(tmp_path: Path, row: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(rows(2) + row + "\n\n" + rows(2, first=2))

    with pytest.raises(StoreError, match=rf"a\.jsonl, {told}.*--skip-broken"):
        prepared(tmp_path / "a.jsonl", tmp_path / "out")
    made = prepared(tmp_path / "a.jsonl", tmp_path / "out", skip_broken=True, validation=0.0)

    assert (made.n_broken, made.n_documents) == (1, 4)


def test_a_row_without_text_in_a_table_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["one", None, "two"])

    with pytest.raises(StoreError, match="row 2 from row group 0: no text"):
        prepared(tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(UsageError, match="no column 'body', but text, n: name one with --field"):
        prepared(tmp_path / "a.parquet", tmp_path / "out", field="body")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"b\.parquet is no whole Parquet table"):
        prepared(tmp_path / "b.parquet", tmp_path / "out")


def test_text_that_is_no_utf8_is_told_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n" * 10 + b"caf\xe9\n")

    with pytest.raises(StoreError, match=r"a\.txt, near byte 53: not text in UTF-8"):
        prepared(tmp_path / "a.txt", tmp_path / "out")
    prepared(tmp_path / "a.txt", tmp_path / "out", skip_broken=True, validation=0.0)
    assert text_in(tmp_path / "out").endswith("caf�\n\0")


def test_a_line_without_an_end_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_ROW_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 5000)

    with pytest.raises(StoreError, match="a row of 1000 bytes or more; is it a file of JSON lines"):
        prepared(tmp_path / "a.jsonl", tmp_path / "out")


def test_a_source_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "blank.txt").write_text("")

    for name, told in (("none", "does not exist"), ("empty", "holds no text, but nothing"), ("a.png", "is a PNG image"),
                       ("blank.txt", "is empty")):  # fmt: skip
        with pytest.raises(StoreError, match=told):
            prepared(tmp_path / name, tmp_path / "out")
    (tmp_path / "rows.jsonl").write_text("\n\n")
    with pytest.raises(StoreError, match="no text to train on"):
        prepared(tmp_path / "rows.jsonl", tmp_path / "out")


def test_documents_are_held_back_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows(400))
    (tmp_path / "b.jsonl").write_text("".join(reversed(rows(400).splitlines(keepends=True))))

    one = prepared(tmp_path / "a.jsonl", tmp_path / "a", validation=0.25)
    other = prepared(tmp_path / "b.jsonl", tmp_path / "b", validation=0.25)

    assert one.n_validation == other.n_validation
    assert one.n_validation / (one.n_validation + one.n_tokens) == pytest.approx(0.25, abs=0.06)


def test_weights_make_a_mixture(tmp_path: Path, small_tasks: None) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "a" * 99}) + "\n" for _ in range(50)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": "b" * 99}) + "\n" for _ in range(50)))
    settings = Preparation((str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")), (3.0, 1.0), validation=0.0)

    prepare(settings, find_sources(settings.sources, "text"), Tokenizer(), tmp_path / "out")

    text = text_in(tmp_path / "out").replace("\0", "")
    assert text.count("a") == 50 * 99
    assert text.count("b") / len(text) == pytest.approx(0.25, abs=0.01)
    for weights in ((1.0,), (1.0, -1.0), (0.0, 1.0)):
        with pytest.raises(UsageError, match="weights for 2 sources"):
            Preparation(settings.sources, weights).check()


def test_a_trained_tokenizer_gives_the_text_back(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    (tmp_path / "a.jsonl").write_text(rows(60))
    settings = Preparation((str(tmp_path / "a.jsonl"),), validation=0.0)
    raw = train_tokenizer(all_texts(settings, find_sources(settings.sources, "text").tasks, 10**6), 300)
    tokenizer = Tokenizer(raw, "mine")

    made = prepare(settings, find_sources(settings.sources, "text"), tokenizer, tmp_path / "out")

    folder = open_prepared(tmp_path / "out")
    assert folder is not None and folder.dataset.vocab_size == 300 and folder.dataset.token_bytes == 2
    tokens = folder.tokens("train")
    assert isinstance(tokens, np.ndarray) and tokens.dtype == np.uint16
    texts = tokenizer.decode(tokens.tolist()) if tokenizer.end_text == END_OF_TEXT else ""
    assert texts.replace(END_OF_TEXT, "") == "".join(story(i) for i in range(60))
    assert made.n_tokens < 0.5 * len("".join(story(i) for i in range(60)))
    assert folder.tokenizer == raw == train_tokenizer((story(i) for i in range(60)), 300)


@pytest.mark.parametrize(("raw", "told"), [
    (b"", "bytes"), (b"{", "no tokenizer that the library"), (b"[]", "no table of fields"), (b"\xff\xfe\x00", "no tokenizer"),
    (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}}', "no tokenizer"),
    (b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}', "0 tokens"),
])  # fmt: skip
def test_a_malformed_tokenizer_is_told_by_file(tmp_path: Path, raw: bytes, told: str) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    if not raw:
        assert read_tokenizer("bytes").vocab_size == 256
        return
    with pytest.raises(StoreError, match=rf"tokenizer\.json.*{told}"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_not_there_or_has_no_such_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"does not exist: give a tokenizer\.json"):
        read_tokenizer(str(tmp_path))
    with pytest.raises(UsageError, match="no '</s>'"):
        read_tokenizer("bytes", "</s>")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    raw = train_tokenizer([story(0)], 260)
    with pytest.raises(UsageError, match="mine has no token '</s>'"):
        Tokenizer(raw, "mine", "</s>")
    for size in (256, 1 << 21):
        with pytest.raises(UsageError, match="must be 257 to"):
            train_tokenizer([], size)


def test_a_prepared_folder_is_a_text_to_train_on(tmp_path: Path, small_tasks: None) -> None:
    (tmp_path / "a.jsonl").write_text(rows(60))
    made = prepared(tmp_path / "a.jsonl", tmp_path / "out", validation=0.3)

    corpus = open_text(tmp_path / "out", context=16)

    assert corpus.prepared is not None and str(corpus.prepared.cid) == made.cid
    assert (len(corpus.train), len(corpus.validation), corpus.vocab_size) == (made.n_tokens, made.n_validation, 256)
    with pytest.raises(StoreError, match="give more text"):
        open_text(tmp_path / "out", context=10**6)


def test_a_folder_whose_files_were_changed_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(rows(60))
    prepared(tmp_path / "a.jsonl", tmp_path / "out", validation=0.3)
    shard = tmp_path / "out" / "train-00000.bin"
    raw = shard.read_bytes()

    shard.write_bytes(raw + b"x")
    with pytest.raises(StoreError, match=r"train-00000\.bin has \d+ bytes, where the data set has"):
        open_text(tmp_path / "out")
    shard.unlink()
    with pytest.raises(StoreError, match=r"train-00000\.bin is missing"):
        open_text(tmp_path / "out")
    shard.write_bytes(raw)
    (tmp_path / "out" / "train-00000.node").write_bytes(b"x")
    with pytest.raises(StoreError, match="is not the one that the data set names"):
        open_text(tmp_path / "out")
    (tmp_path / "out" / "dataset.cbor").write_bytes(b"x")
    with pytest.raises(StoreError, match="is not what legion-ctl data prepare writes"):
        open_text(tmp_path / "out")


def test_the_files_are_the_blocks_that_others_fetch(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    (tmp_path / "a.jsonl").write_text(rows(60))
    tokenizer = Tokenizer(train_tokenizer([story(i) for i in range(60)], 280), "mine")
    prepared(tmp_path / "a.jsonl", tmp_path / "out", tokenizer)
    blocks = DatasetBlocks(tmp_path / "out")

    for cid in blocks:
        assert cid.names(blocks.get(cid)) and blocks.size_of(cid) == len(blocks.get(cid))
    assert blocks.root == read_dataset(tmp_path / "out")[0] in set(blocks)
    with BlockStore(tmp_path / "store") as store:
        keep_tokenizer(tmp_path / "out", store)
        keep_tokenizer(tmp_path / "out", store)
        store.collect()
        assert set(store) < set(blocks)
    shard = tmp_path / "out" / "train-00000.bin"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    damaged = [cid for cid in blocks if not _is_whole(blocks, cid)]
    assert len(damaged) == 1


def _is_whole(blocks: DatasetBlocks, cid: Any) -> bool:
    try:
        blocks.get(cid)
    except MissingBlockError as bad:
        assert "changed after it was prepared" in str(bad)
        return False
    return True


def test_a_data_set_of_the_library_datasets_is_read_by_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    folder = tmp_path / "corpus" / "data"
    folder.mkdir(parents=True)
    for i in range(3):
        write_parquet(folder / f"train-{i:05d}-of-00003.parquet", [story(10 * i + j) for j in range(10)])
    write_parquet(folder / "test-00000-of-00001.parquet", ["never"])

    made = prepared(f"hf:{tmp_path / 'corpus'}", tmp_path / "out", validation=0.0)

    assert made.n_documents == 30 and "never" not in text_in(tmp_path / "out")
    assert text_in(tmp_path / "out") == "".join(story(i) + "\0" for i in range(30))
    with pytest.raises(LegionError, match="no data set that can be read"):
        prepared(f"hf:{tmp_path / 'nothing'}", tmp_path / "none")
