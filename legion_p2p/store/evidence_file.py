"""The file of what is proven against owners, beside the key of a peer: a peer that is started again believes none of them.

MessagePack, replaced whole. Deleting it forgets what it says; others show it again while they know it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from legion_p2p.core.evidence import MAX_SHOWN, KeptEvidence
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown
from legion_p2p.files.reading import read_limited
from legion_p2p.files.writing import write_whole

MAX_FILE_BYTES = MAX_SHOWN * 2 * (MAX_SHOWN_HEADER_BYTES + 1024)  # two headers each, of the longest that are shown

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[KeptEvidence, ...])


@dataclass(frozen=True)
class EvidenceFile:
    """The file beside one key file."""

    path: Path

    @classmethod
    def beside(cls, key: Path) -> "EvidenceFile":
        """`peer.key` has peer.evidence."""
        return cls(key.with_suffix(".evidence"))

    def load(self) -> Sequence[KeptEvidence]:
        """What is in it; nothing where there is no file. Raises: StoreError."""
        if kind_of(self.path) is FileKind.MISSING:
            return ()
        try:
            return _decoder.decode(read_limited(self.path, MAX_FILE_BYTES))[:MAX_SHOWN]
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise StoreError(f"{shown(self.path)} is no list of evidence: {bad}; it may be deleted") from bad

    def save(self, kept: Sequence[KeptEvidence]) -> None:
        """Replace it. Raises: StoreError; DiskFullError."""
        write_whole(self.path, _encoder.encode(tuple(kept)))
