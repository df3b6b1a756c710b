"""Text that is trained on as it is read: each peer its own part, and on where it was."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.train.datasets import sources, stream
from legion_p2p.train.datasets.sources import Sources, find_sources
from legion_p2p.train.datasets.stream import StreamedWindows
from legion_p2p.train.datasets.tokenizer import Tokenizer
from tests.waiting import PATIENCE_S

PEERS = [Identity(name.encode().ljust(32, b".")).peer_id for name in "ab"]
LINES = [f"{i:04d} is the number of this line" for i in range(120)]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setattr(sources, "TASK_BYTES", 300)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return find_sources((str(tmp_path / "a.jsonl"),), "text")


def windows(found: Sources, me: PeerId = PEERS[0], members: tuple[PeerId, ...] = (), context: int = 8) -> StreamedWindows:
    return StreamedWindows(found, Tokenizer(), context, 2, me, lambda: members)


def read(data: StreamedWindows, n_batches: int) -> str:
    """What it gives, targets one further than inputs."""
    rows = []
    for _ in range(n_batches):
        x, y = next(data)
        assert x.shape == y.shape == (2, 8) and (x[:, 1:] == y[:, :-1]).all()
        rows += [bytes(row) for row in x.tolist()]
    return b"|".join(rows).decode()


def test_a_window_goes_on_where_the_last_one_of_its_chunk_ended(found: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "DEFAULT_OPEN_STREAMS", 1)
    data = windows(found)

    text = read(data, 10).replace("|", "")

    assert text.startswith(tuple(line + "\0" for line in LINES))
    assert text[: len(LINES[0]) + 5].split("\0")[1].isdigit()


def test_two_peers_read_different_parts(found: Sources) -> None:
    peers = [windows(found, me, tuple(PEERS)) for me in PEERS]
    given = ["", ""]

    for _ in range(100):
        for i, peer in enumerate(peers):
            given[i] += read(peer, 1).replace("|", "")
            peers[1 - i].heard(PEERS[i], *peer.announcement())
            if peers[0].announcement()[0] or peers[1].announcement()[0]:
                break

    taken = [np.unpackbits(np.frombuffer(peer.announcement()[1], np.uint8)) for peer in peers]
    assert len(found.tasks) > 8 and not (taken[0] & taken[1]).any() and all(bits.any() for bits in taken)


def test_it_goes_on_with_the_very_next_batch(found: Sources) -> None:
    data = windows(found)
    read(data, 7)
    state = json.loads(json.dumps(data.state_dict()))

    again = windows(found)
    again.load_state_dict(state)

    assert read(again, 40) == read(data, 40)
    assert again.announcement() == data.announcement()


def test_epoch_follows_epoch(found: Sources) -> None:
    data = windows(found)

    read(data, 2 * len(LINES) * 40 // 16)

    assert data.announcement()[0] >= 1


def test_a_state_of_other_sources_is_refused(found: Sources) -> None:
    data = windows(found)
    read(data, 3)
    state = data.state_dict()

    for change in ({"n_chunks": 3}, {"ledger": 1}, {"open_streams": [{"epoch": 0, "chunk": 10**6}]},
                   {"open_streams": [{"epoch": 0, "chunk": 0, "n_given": stream.MAX_SKIPPED + 1}]}):  # fmt: skip
        with pytest.raises(DecodeError, match=r"state of"):
            windows(found).load_state_dict({**state, **change})


def test_sources_with_less_than_a_window_are_told(found: Sources) -> None:
    with pytest.raises(StoreError, match="no source holds a window of 100000 tokens"):
        next(windows(found, context=100_000))
    with pytest.raises(UsageError, match="must both be 1 or more"):
        windows(found, context=0)


def test_broken_rows_are_told_where_they_are_met(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")

    with pytest.raises(StoreError, match=r"a\.jsonl, line 1: not JSON"):
        next(windows(find_sources((str(tmp_path / "a.jsonl"),), "text")))


def test_others_are_heard_while_a_source_is_slow(found: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    data = windows(found, members=tuple(PEERS))
    is_read, may_go_on = threading.Event(), threading.Event()
    texts_of = stream.texts_of

    def slowly(*args: Any) -> Any:
        is_read.set()
        assert may_go_on.wait(PATIENCE_S)
        return texts_of(*args)

    monkeypatch.setattr(stream, "texts_of", slowly)
    reading = threading.Thread(target=next, args=(data,))
    reading.start()
    assert is_read.wait(PATIENCE_S)

    epoch, own = data.announcement()  # all of these would wait for the source
    other = windows(found, PEERS[1], tuple(PEERS))
    data.heard(PEERS[1], *other.announcement())
    assert data.state_dict() and epoch == 0 and own

    may_go_on.set()
    reading.join(PATIENCE_S)
    assert not reading.is_alive()


def test_a_chunk_that_is_given_up_while_it_is_read_is_read_no_further(found: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "DEFAULT_OPEN_STREAMS", 1)
    data = windows(found, members=tuple(PEERS))
    texts_of, taken = stream.texts_of, []

    def meanwhile(*args: Any) -> Any:
        if not taken:
            taken.extend(one.chunk for one in data._open)
            data._open.clear()  # as `heard` does, for what it gives up
        return texts_of(*args)

    monkeypatch.setattr(stream, "texts_of", meanwhile)
    read(data, 1)

    assert taken and all(one.chunk not in taken for one in data._open)
