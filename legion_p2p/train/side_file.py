"""`legion.json`, beside an exported model: what the other formats cannot say, and an import needs."""

from pathlib import Path

import msgspec

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import Cid
from legion_p2p.errors import DecodeError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import write_whole
from legion_p2p.train.checkpoint import Checkpoint

SIDE_FILE = "legion.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
DCP_INDEX = ".metadata"
MAX_SIDE_BYTES = 4 << 20  # a specification has at most 1 MiB


class SideFile(msgspec.Struct, frozen=True):
    """Its content. Bytes are in base64."""

    checkpoint: str
    spec: bytes
    spec_signature: bytes
    step: int
    versions: tuple[int, ...]
    state: bytes
    """DAG-CBOR of the manifest's `state`, without links to blocks that are not in the export."""
    names: str
    """Whose names the parameters have in the file: `run`, `gpt2`, `llama` or `transformers`."""


def side_of(checkpoint: Checkpoint, names: str) -> SideFile:
    """Raises: MissingBlockError; DecodeError."""
    signed, manifest = checkpoint.signed, checkpoint.manifest
    versions = tuple(state.version for state, _ in checkpoint.states())
    state = dagcbor.encode({name: value for name, value in manifest.state.items() if not isinstance(value, Cid)})
    return SideFile(str(checkpoint.cid), signed.spec, signed.signature, manifest.step, versions, state, names)


def write_side(folder: Path, side: SideFile) -> None:
    """Raises: StoreError; DiskFullError."""
    write_whole(folder / SIDE_FILE, msgspec.json.format(msgspec.json.encode(side)) + b"\n")


def read_side(folder: Path) -> SideFile:
    """Raises: StoreError; DecodeError."""
    file = folder / SIDE_FILE
    try:
        return msgspec.json.decode(read_text(file, MAX_SIDE_BYTES), type=SideFile)
    except msgspec.DecodeError as bad:
        raise DecodeError(f"{shown(file)} is not what an export writes: {bad}") from bad
