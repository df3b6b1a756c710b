"""The file beside a key file in which a peer writes down what its pushes have spent of its privacy: peer.privacy.json.

It is replaced whole. Deleting it forgets what was spent; what was pushed is not taken back by that.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from legion_p2p.core.privacy import Spent
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_limited
from legion_p2p.files.writing import make_folder, write_whole

MAX_FILE_BYTES = 1 << 20  # a run takes some 130 bytes
SUFFIX = ".privacy.json"

_decoder = msgspec.json.Decoder(dict[str, Spent])


@dataclass(frozen=True)
class SpentFile:
    """The file of one peer."""

    path: Path

    @classmethod
    def beside(cls, identity: str) -> "SpentFile":
        """Raises: UsageError, if no file can have such a name."""
        key = user_path(identity)
        return cls(key.with_name(f"{key.stem}{SUFFIX}"))

    def load(self, run: str) -> Spent:
        """What was spent in this run. Raises: StoreError, if it cannot be read, or holds something else."""
        return self._load().get(run, Spent())

    def save(self, run: str, spent: Spent) -> None:
        """Write it down, beside what was spent in other runs. Raises: StoreError; DiskFullError."""
        make_folder(self.path.parent)
        write_whole(self.path, msgspec.json.encode({**self._load(), run: spent}))

    def _load(self) -> dict[str, Spent]:
        if kind_of(self.path) is FileKind.MISSING:
            return {}
        try:
            read = _decoder.decode(read_limited(self.path, MAX_FILE_BYTES))
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise StoreError(
                f"{shown(self.path)} does not say what privacy was spent: {bad}; remove it to begin at nothing"
            ) from bad
        if any(not 0 <= number < float("inf") for spent in read.values() for number in (spent.total, spent.rounds)):
            raise StoreError(f"{shown(self.path)} does not say what privacy was spent; remove it to begin at nothing")
        return read
