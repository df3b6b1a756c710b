"""Pieces in files without a name: the same bytes, no file left behind, and memory where the disk does not take them."""

import gc
import mmap
from pathlib import Path

import pytest

from legion_p2p.files.mapped import cool
from legion_p2p.store import shelf
from legion_p2p.store.shelf import FileShelf

PIECE = bytes(range(256)) * 1024


def test_a_large_piece_is_mapped_from_a_file_that_nobody_sees(tmp_path: Path) -> None:
    kept = FileShelf(tmp_path).keep(PIECE)

    assert isinstance(kept, memoryview) and isinstance(kept.obj, mmap.mmap)
    assert kept == PIECE and list(tmp_path.iterdir()) == []
    cool(kept)
    assert kept == PIECE


def test_a_small_piece_stays_in_memory(tmp_path: Path) -> None:
    assert FileShelf(tmp_path).keep(PIECE[:-1]) is not PIECE and FileShelf(tmp_path).keep(small := PIECE[:1000]) is small


def test_a_piece_goes_with_its_last_reference(tmp_path: Path) -> None:
    shelf_ = FileShelf(tmp_path)
    kept = [shelf_.keep(PIECE) for _ in range(3)]
    assert shelf_.n_pieces == 3

    del kept
    gc.collect()

    assert shelf_.n_pieces == 0


def test_beyond_the_limit_pieces_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MAX_PIECES", 2)
    shelf_ = FileShelf(tmp_path)
    kept = [shelf_.keep(PIECE) for _ in range(3)]

    assert [isinstance(piece, memoryview) for piece in kept] == [True, True, False]


def test_where_the_disk_takes_nothing_they_stay_in_memory(tmp_path: Path) -> None:
    assert FileShelf(tmp_path / "missing").keep(PIECE) is PIECE
