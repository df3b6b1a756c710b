"""Reading safetensors: what the library of the format writes, and what is no such file or not a whole one."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from legion_p2p.errors import DecodeError, LegionError, StoreError
from legion_p2p.train import safetensors_file
from legion_p2p.train.safetensors_file import open_safetensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.tensor([True, False]), "empty": torch.empty(0, 4),
    "half": torch.ones(3, dtype=torch.bfloat16), "scalar": torch.tensor(2.5, dtype=torch.float64),
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_every_tensor_is_read_as_the_formats_library_wrote_it(path: Path) -> None:
    with open_safetensors(path) as file:
        assert file.names == set(TENSORS)
        for name, value in TENSORS.items():
            assert torch.equal(file.read(name), value) and file.read(name).dtype == value.dtype
            assert file.shape_of(name) == tuple(value.shape)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error_not_a_signal(path: Path) -> None:
    with pytest.raises(DecodeError, match="cut off"), open_safetensors(path) as file:
        size = path.stat().st_size
        with open(path, "r+b") as other:
            other.truncate(size - 40)
        for name in sorted(file.names):
            file.read(name)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "is empty, where a file of safetensors is expected"),
        (b"plain text", "is plain text"),
        (b"\xff" * 100, "is plain text|is binary"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"PK\x03\x04" + bytes(50), "torch.save"),
        (struct.pack("<Q", 200 << 20) + b"{", "where a file of safetensors is expected"),
        (struct.pack("<Q", 20) + b"{", "ends within its header"),
        (struct.pack("<Q", 10) + b"{not json}", "no file of safetensors"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, raw: bytes, told: str) -> None:
    (tmp_path / "x").write_bytes(raw)

    with pytest.raises(DecodeError, match=told), open_safetensors(tmp_path / "x"):
        pass


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}, "cut off"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "cut off"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "in 8 bytes of F32"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "no file of safetensors"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
        ({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "F8_E4M3"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, entry: dict, told: str) -> None:
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    with pytest.raises(DecodeError, match=told), open_safetensors(tmp_path / "x") as file:
        file.read("x")


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, raw: bytes, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(struct.pack("<Q", size) + b"{" + raw)

    with contextlib.suppress(LegionError), open_safetensors(path) as file:
        for name in file.names:
            file.read(name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file"), open_safetensors(tmp_path / "x"):
        pass


def test_a_header_beyond_the_limit_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", 100)

    with pytest.raises(DecodeError, match="where a file of safetensors is expected"), open_safetensors(path):
        pass
