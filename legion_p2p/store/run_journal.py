"""The journal of a run: what came since its newest checkpoint, as typed records in one file (store/journal.py).

update   an update, as it was broadcast; it leads on from `base_digest`
whole    a shard in one version, with all of its bytes
state    the run's step, and what else the trainer needs to go on
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from legion_p2p.core.wire import Inclusion
from legion_p2p.errors import DecodeError
from legion_p2p.store.journal import Journal


class UpdateRecord(msgspec.Struct, frozen=True, tag="u", array_like=True):
    shard: int
    version: int
    base_digest: bytes
    digest: bytes
    message: bytes


class WholeRecord(msgspec.Struct, frozen=True, tag="w", array_like=True):
    shard: int
    version: int
    digest: bytes
    included: tuple[Inclusion, ...]
    leaves: tuple[bytes, ...]
    salt: bytes = b""


class StateRecord(msgspec.Struct, frozen=True, tag="s", array_like=True):
    step: int
    state: bytes


Record = UpdateRecord | WholeRecord | StateRecord
_records: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class RunJournal:
    """Raises whatever `Journal` raises; and DecodeError, if a record is not what it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal = Journal(path)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._journal.size

    def close(self) -> None:
        self._journal.close()

    def clear(self) -> None:
        """Start empty: the newest checkpoint has all of it."""
        self._journal.clear()

    def append(self, records: Sequence[Record]) -> Sequence[int]:
        """Write records. Returns the place of each."""
        return self._journal.append([msgspec.msgpack.encode(record) for record in records])

    def records(self) -> Iterator[tuple[int, Record]]:
        """All of them, in order, and the place of each."""
        return ((at, _decode(data)) for at, data in self._journal.records())

    def update_at(self, at: int) -> bytes:
        """The encoded update in this place."""
        record = _decode(self._journal.read(at))
        if not isinstance(record, UpdateRecord):
            raise DecodeError(f"{self.path}: no update at byte {at}")
        return record.message

    def whole_at(self, at: int) -> WholeRecord:
        """The whole shard in this place."""
        record = _decode(self._journal.read(at))
        if not isinstance(record, WholeRecord):
            raise DecodeError(f"{self.path}: no whole shard at byte {at}")
        return record


def _decode(data: bytes) -> Record:
    try:
        return _records.decode(data)
    except msgspec.DecodeError as bad:
        raise DecodeError(f"a record of {len(data)} bytes in a journal: {bad}") from bad
