"""The file of the peers that a node knows, which it reads when it starts.

JSON, replaced whole. It is worth little and may be deleted: what cannot be read is reported, and the node starts without it.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from legion_p2p.core.known_peers import KnownPeers, bounded
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_limited
from legion_p2p.files.writing import make_folder, write_whole

MAX_FILE_BYTES = 8 << 20  # four times of what the limits of core/known_peers.py come to
SUFFIX = ".peers.json"

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(KnownPeers)


@dataclass(frozen=True)
class KnownPeersFile:
    """The file beside a key file: the peers that the node with this key knows."""

    path: Path

    @classmethod
    def beside(cls, identity: str) -> "KnownPeersFile":
        """`peer.key` has peer.peers.json. Raises: UsageError, if no file can have such a name."""
        key = user_path(identity)
        return cls(key.with_name(f"{key.stem}{SUFFIX}"))

    def load(self) -> KnownPeers:
        """What is in it; nothing where there is no file. Raises: StoreError, if it cannot be read, or holds something else."""
        if kind_of(self.path) is FileKind.MISSING:
            return KnownPeers()
        raw = read_limited(self.path, MAX_FILE_BYTES)
        try:
            return bounded(_decoder.decode(raw).peers)
        except (msgspec.DecodeError, UnicodeDecodeError) as bad:
            raise StoreError(f"{shown(self.path)} is not a list of known peers: {bad}; it may be deleted") from bad

    def save(self, known: KnownPeers) -> None:
        """Replace it. Raises: StoreError; DiskFullError."""
        make_folder(self.path.parent)
        write_whole(self.path, _encoder.encode(known))
