"""The file beside a key file in which a peer writes down what it has sent and received this month: peer.volume.json for peer.key.

It is replaced whole. A file that cannot be read counts as used up to nothing: it is reported, and counting begins again.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from legion_p2p.core.volume import MonthlyVolume
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_limited
from legion_p2p.files.writing import make_folder, write_whole

MAX_FILE_BYTES = 4096
SUFFIX = ".volume.json"

_decoder = msgspec.json.Decoder(MonthlyVolume)


@dataclass(frozen=True)
class VolumeFile:
    """The file of one peer."""

    path: Path

    @classmethod
    def beside(cls, identity: str) -> "VolumeFile":
        """Raises: UsageError, if no file can have such a name."""
        key = user_path(identity)
        return cls(key.with_name(f"{key.stem}{SUFFIX}"))

    def load(self) -> MonthlyVolume:
        """What was written last. Raises: StoreError, if it cannot be read, or holds something else."""
        if kind_of(self.path) is FileKind.MISSING:
            return MonthlyVolume()
        raw = read_limited(self.path, MAX_FILE_BYTES)
        try:
            return _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise StoreError(f"{shown(self.path)} is not the volume of a month: {bad}; remove it to count from nothing") from bad

    def save(self, volume: MonthlyVolume) -> None:
        """Replace it. Raises: StoreError; DiskFullError."""
        make_folder(self.path.parent)
        write_whole(self.path, msgspec.json.encode(volume))
