"""Files of safetensors, read and written tensor by tensor, with plain reads of checked lengths.

The format's own library wants all tensors at once for writing, and maps the file into memory for reading. A file that is cut off
while it is read (another program writes it, a network disk loses it) then ends the process with SIGBUS; here it is an error that
names the file.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO

import msgspec
import torch
from torch import Tensor

from legion_p2p.errors import DecodeError
from legion_p2p.files.content import GIT_LFS, description_of, format_of
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import opened
from legion_p2p.files.writing import write_all
from legion_p2p.tensor.flatten import fp32_bytes

MAX_HEADER_BYTES = 100 << 20  # the limit of the format's own library
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
           "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip

_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


class SafetensorsFile:
    """An open file of tensors. Made by `open_safetensors`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Raises: DecodeError, if it is no such file, or not a whole one."""
        self._where = shown(path)
        self._file = file
        self._n_bytes = os.fstat(file.fileno()).st_size
        self._entries, self._data_at = self._read_header()

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def read(self, name: str) -> Tensor:
        """A tensor, in the type that it has in the file. Raises: DecodeError; OSError."""
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise DecodeError(f"{self._where}: {name} has the type {entry.dtype[:20]!r}; known are {', '.join(_DTYPES)}")
        begin, end = entry.data_offsets
        data = bytearray(self._read_at(self._data_at + begin, end - begin, name))
        if not data:
            return torch.empty(entry.shape, dtype=dtype, device="cpu")
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)

    def _read_header(self) -> tuple[dict[str, _Entry], int]:
        head = self._file.read(1024)
        kind = format_of(head)
        if kind == GIT_LFS:
            raise DecodeError(f"{self._where} is {GIT_LFS}")
        size = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if len(head) < _LENGTH_BYTES or not 2 <= size <= MAX_HEADER_BYTES or head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
            raise DecodeError(f"{self._where} is {description_of(head)}, where a file of safetensors is expected")
        raw = self._read_at(_LENGTH_BYTES, size, "its header")
        try:
            said: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
            said.pop("__metadata__", None)
            entries = msgspec.convert(said, dict[str, _Entry])
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise DecodeError(f"{self._where} is no file of safetensors: {bad}") from bad
        for name, entry in entries.items():
            self._check(name, entry, self._n_bytes - _LENGTH_BYTES - size)
        return entries, _LENGTH_BYTES + size

    def _check(self, name: str, entry: _Entry, n_data: int) -> None:
        begin, end = entry.data_offsets
        if not begin <= end <= n_data:
            raise DecodeError(f"{self._where} has {n_data} bytes of tensors, and {name} would end at {end}: it was cut off")
        dtype = _DTYPES.get(entry.dtype)
        if dtype is not None and math.prod(entry.shape) * dtype.itemsize != end - begin:
            raise DecodeError(f"{self._where}: {name} of shape {list(entry.shape)} in {end - begin} bytes of {entry.dtype}")

    def _read_at(self, at: int, n_bytes: int, what: str) -> bytes:
        # a read makes room for all that it is asked for: what the file says of itself must not decide that alone
        data = b""
        if at + n_bytes <= self._n_bytes:
            self._file.seek(at)
            data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise DecodeError(f"{self._where} ends within {what}: it was cut off, or another program is writing it")
        return data


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """Open a file of safetensors. Raises: StoreError, if it cannot be read; DecodeError, if it is something else."""
    with opened(path) as file:
        yield SafetensorsFile(path, file)


def write_safetensors(
    file: IO[bytes],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    values: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write fp32 tensors of these names and shapes, one at a time, as they come. Raises: OSError."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, shape in shapes:
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data is aligned
    write_all(file, struct.pack("<Q", len(raw)) + raw)
    for value in values:
        write_all(file, fp32_bytes(value))
