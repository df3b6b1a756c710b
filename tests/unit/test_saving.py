"""The model at the end of training is where it was asked for, or its place is named."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from legion_p2p.errors import DiskFullError, NotSavedError, StoreError
from legion_p2p.train import saving
from legion_p2p.train.saving import check_out, save_model

PARAMS = [("a", torch.arange(6, dtype=torch.float32).view(2, 3)), ("b", torch.ones(2))]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "legion_p2p"


def assert_whole(path: Path) -> None:
    loaded = load_file(path)
    assert list(loaded) == ["a", "b"] and all(torch.equal(loaded[name], value) for name, value in PARAMS)


def test_the_model_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    path = save_model(PARAMS, check_out(str(tmp_path / "o")), {"step": "3"})

    assert path == tmp_path / "o" / "model.safetensors"
    assert_whole(path)


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    out = check_out(str(tmp_path / "o"))
    out.rmdir()

    assert_whole(save_model(PARAMS, out, {}))


@pytest.mark.parametrize("in_the_way", ["a file instead of the folder", "a folder instead of the file"])
def test_where_it_cannot_be_written_it_is_elsewhere_and_that_place_is_named(tmp_path: Path, home: Path, in_the_way: str) -> None:
    out = tmp_path / "o"
    if in_the_way == "a file instead of the folder":
        out.touch()
    else:
        (out / "model.safetensors").mkdir(parents=True)

    with pytest.raises(NotSavedError, match=r"could not be written to .*/o: .* It is in") as told:
        save_model(PARAMS, out, {})

    (path,) = home.iterdir()
    assert str(path) in str(told.value)
    assert_whole(path)


def test_a_full_disk_is_told_and_the_next_place_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = saving._write
    full = {tmp_path / "o", tmp_path / "data" / "legion_p2p"}

    def on_a_small_disk(params, path: Path, metadata) -> Path:
        if path.parent in full:
            raise DiskFullError("no space left")
        return write(params, path, metadata)

    monkeypatch.setattr(saving, "_write", on_a_small_disk)
    with pytest.raises(NotSavedError, match="no space left"):
        save_model(PARAMS, tmp_path / "o", {})

    assert_whole(tmp_path / f"legion-{os.getpid()}-model.safetensors")


def test_no_place_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise DiskFullError("no space left")

    monkeypatch.setattr(saving, "_write", refuse)
    with pytest.raises(NotSavedError, match="nor could it be written anywhere else"):
        save_model(PARAMS, tmp_path / "o", {})


@pytest.mark.parametrize("there", ["legion.json", ".metadata"])
def test_a_folder_with_an_exported_checkpoint_is_not_written_to(tmp_path: Path, there: str) -> None:
    (tmp_path / there).touch()

    with pytest.raises(StoreError, match="holds an exported checkpoint"):
        check_out(str(tmp_path))
