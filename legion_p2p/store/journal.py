"""What came since the newest checkpoint: records appended to one file.

    record    its length and its CRC-32, four bytes each, big-endian; then its bytes

An append is on disk when it returns. Whatever a crash or a full disk left half-written at the end is cut off, there and then or
at the next start: a journal holds whole records only.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from legion_p2p.errors import StoreError
from legion_p2p.files.writing import sync_folder
from legion_p2p.store.folder import raise_as_store_error

MAX_RECORD_BYTES = 64 << 20  # an update of the largest shard in fp32 has 33 MiB
_HEAD = struct.Struct(">II")


class Journal:
    """A file of records; one process at a time has it open, whoever holds the store's lock."""

    def __init__(self, path: Path) -> None:
        """Raises: StoreError; DiskFullError."""
        self.path = path
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (it stays open)
            sync_folder(path.parent)
            self.size = 0
            for at, record in self.records():
                self.size = at + _HEAD.size + len(record)
            self._file.truncate(self.size)
        except OSError as failed:
            raise_as_store_error(failed, path)

    def close(self) -> None:
        self._file.close()

    def append(self, records: Sequence[bytes]) -> list[int]:
        """Add records; where each begins. All are on disk when this returns, none where it raises.

        Raises: DiskFullError; StoreError.
        """
        places, at = [], self.size
        for record in records:
            if len(record) > MAX_RECORD_BYTES:
                raise StoreError(f"a record of {len(record)} bytes for {self.path}, at most {MAX_RECORD_BYTES}")
            places.append(at)
            at += _HEAD.size + len(record)
        try:
            for record in records:
                view = memoryview(_HEAD.pack(len(record), zlib.crc32(record)) + record)
                while view:
                    view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as failed:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            raise_as_store_error(failed, self.path)
        self.size = at
        return places

    def read(self, at: int) -> bytes:
        """The record that begins there. Raises: StoreError, if there is none, or not whole any more."""
        record = self._read(at)
        if record is None:
            raise StoreError(f"{self.path} is damaged: there is no whole record at byte {at}")
        return record

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Every record and where it begins, up to the first one that is not whole."""
        at = 0
        while (record := self._read(at)) is not None:
            yield at, record
            at += _HEAD.size + len(record)

    def clear(self) -> None:
        """Forget all records. Raises: StoreError."""
        try:
            self._file.truncate(0)
            os.fsync(self._file.fileno())
        except OSError as failed:
            raise_as_store_error(failed, self.path)
        self.size = 0

    def _read(self, at: int) -> bytes | None:
        try:
            self._file.seek(at)
            head = self._file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            size, checksum = _HEAD.unpack(head)
            if size > MAX_RECORD_BYTES:
                return None
            record = self._file.read(size)
        except OSError as failed:
            raise_as_store_error(failed, self.path)
        return record if len(record) == size and zlib.crc32(record) == checksum else None
