"""Text that legion-peer streams: what is held back, which tokenizer a run has, and on where it was."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from legion_p2p.config import NewRun
from legion_p2p.core.identity import Identity
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.observe.events import Events
from legion_p2p.train.datasets.source_names import stream_name
from legion_p2p.train.datasets.stream import StreamedWindows
from legion_p2p.train.datasets.tokenizer import Tokenizer, train_tokenizer
from legion_p2p.train.described import described, shape_of
from legion_p2p.train.resume import restore_state, training_state
from legion_p2p.train.run_text import open_run_text
from legion_p2p.train.streamed_text import HELD_OUT_OF, is_held_out, open_stream, reading, with_text

ME, OTHER = (Identity(name.encode().ljust(32, b".")).peer_id for name in "ab")
DOCUMENTS = [f"document {i} tells of the number {i * i} and of nothing else" for i in range(400)]
HELD_OUT = [text for text in DOCUMENTS if is_held_out(text)]
CONTEXT = 16


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    path.write_text("\n".join([*lines[:9], "{broken", *lines[9:]]) + "\n")
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(train_tokenizer(DOCUMENTS, 300))
    return path


def spec_of(data: str, tokenizer: str = ""):
    return described(with_text(NewRun("x", preset="xxs", data=stream_name(data)), data, tokenizer))


def windows(corpus, me=ME) -> StreamedWindows:
    text = corpus.streamed
    return StreamedWindows(text.sources, text.tokenizer, CONTEXT, 2, me, reading=reading(), leave_out=is_held_out)


def test_about_one_document_in_twenty_is_held_back_and_nobody_trains_on_it(rows: Path) -> None:
    data = f"stream:{rows}"
    corpus = open_stream(spec_of(data), data, "", CONTEXT)
    reader = windows(corpus)

    read = "".join(bytes(row).decode() for _ in range(1500) for row in next(reader)[0].tolist())

    assert 1 / 40 < len(HELD_OUT) / len(DOCUMENTS) < 1 / 10 and HELD_OUT_OF == 20
    assert bytes(corpus.validation).decode() == "".join(text + "\0" for text in HELD_OUT)
    assert reader.announcement()[0] >= 1  # an epoch and more was read
    assert not any(text in read for text in HELD_OUT)
    assert sum(text in read for text in DOCUMENTS) > 0.9 * (len(DOCUMENTS) - len(HELD_OUT))


def test_a_new_run_names_the_tokenizer_and_its_model_gets_the_vocabulary(rows: Path, tokenizer: Path) -> None:
    data = f"stream:{rows}"
    spec = spec_of(data, str(tokenizer))

    corpus = open_run_text(spec, data, shape_of(spec), Events(), str(tokenizer))

    assert spec.data == "stream:rows.jsonl" and spec.dataset == "" and spec.tokenizer
    assert shape_of(spec).vocab_size == corpus.vocab_size == Tokenizer(tokenizer.read_bytes()).vocab_size
    assert corpus.tokenizer == tokenizer.read_bytes()
    assert corpus.streamed is not None and HELD_OUT[0] in corpus.streamed.tokenizer.decode(np.asarray(corpus.validation).tolist())


def test_a_peer_with_another_tokenizer_or_none_is_told_before_it_trains(rows: Path, tokenizer: Path, tmp_path: Path) -> None:
    data = f"stream:{rows}"
    spec = spec_of(data, str(tokenizer))
    other = tmp_path / "other.json"
    other.write_bytes(train_tokenizer(DOCUMENTS[:50], 280))

    with pytest.raises(UsageError, match=f"has the tokenizer {spec.tokenizer}: give it with --tokenizer FILE"):
        open_stream(spec, data, "", CONTEXT)
    with pytest.raises(UsageError, match=rf"is the tokenizer \w+, and run 'x' has {spec.tokenizer}"):
        open_stream(spec, data, str(other), CONTEXT)
    with pytest.raises(UsageError, match="only for text that is streamed"):
        with_text(NewRun("x"), "tales", str(tokenizer))
    with pytest.raises(UsageError, match="only for text that is streamed"):
        open_run_text(spec_of("stream:hf:x"), "tales", shape_of(spec), Events(), str(tokenizer))


def test_text_of_which_too_little_is_held_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "short"}))
    data = f"stream:{tmp_path / 'one.jsonl'}"

    with pytest.raises(StoreError, match=r"tokens are held back \(one document in 20\), context 16 needs one more"):
        open_stream(spec_of(data), data, "", CONTEXT)


def test_others_learn_no_paths() -> None:
    assert stream_name("stream:/home/me/secret/books,hf:Some/Set:config") == "stream:books,hf:Some/Set:config"


def test_a_checkpoint_says_where_a_peer_was_and_another_one_reads_what_is_left(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legion_p2p.train.datasets.sources.TASK_BYTES", 2000)
    data = f"stream:{rows}"
    corpus = open_stream(spec_of(data), data, "", CONTEXT)
    first = windows(corpus)
    for _ in range(20):
        next(first)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(training_state(ME, first)))

    back, another = windows(corpus), windows(corpus, OTHER)
    restore_state(state, ME, back)
    restore_state(state, OTHER, another)

    assert next(back)[0].equal(next(first)[0])
    next(another)
    taken = [np.unpackbits(np.frombuffer(one.announcement()[1], np.uint8)) for one in (first, another)]
    assert taken[1].any() and not (taken[0] & taken[1]).any()
    with pytest.raises(DecodeError):
        another.follow({"ledger": 3})
