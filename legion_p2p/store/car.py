"""CAR files, version 1: a root and all its blocks in one file that every IPFS tool reads (ipld.io/specs/transport/car/carv1).

    length, header    DAG-CBOR {"roots": [link, ...], "version": 1}
    length, CID, data for each block; lengths are varints

Written and read block by block, whatever the size of the file.
"""

from collections.abc import Callable, Iterator
from typing import IO

import varint

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import CID_BYTES, Cid
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.errors import DecodeError
from legion_p2p.store.blocks import BlockStore

MAX_HEADER_BYTES = 64 << 10
MAX_ROOTS = 1000
_BATCH_BYTES = 16 << 20  # stored together: folders are synced once for each

Progress = Callable[[int], None]
"""Called with the bytes of each block that is done."""


def write_car(store: BlockStore, root: Cid, file: IO[bytes], progress: Progress = lambda n_bytes: None) -> int:
    """Write `root` and all that it links to; returns the number of blocks.

    Raises: MissingBlockError, DecodeError, after part of the file is written; OSError.
    """
    header = dagcbor.encode({"roots": [root], "version": 1})
    file.write(varint.encode(len(header)) + header)
    n_blocks = 0
    for cid, data in store.walk(root):
        file.write(varint.encode(CID_BYTES + len(data)) + cid.raw)
        file.write(data)
        n_blocks += 1
        progress(len(data))
    return n_blocks


def looks_like_car(head: bytes) -> bool:
    """Whether a file that begins with these bytes can be a CAR: a map in DAG-CBOR that names roots and a version."""
    return b"eroots" in head[:16] or b"gversion" in head[:16]


def read_car(store: BlockStore, file: IO[bytes], progress: Progress = lambda n_bytes: None) -> tuple[Cid, ...]:
    """Store every block of a CAR file, each checked against its name; returns the roots, which are neither pinned nor known
    to be complete. Those before a bad one stay. Call it within `store.hold()`, and pin the roots there.

    Raises: DecodeError; QuotaError; DiskFullError; StoreError.
    """
    roots = _roots(_section(file, MAX_HEADER_BYTES, "the header"))
    batch, size = [], 0
    for cid, data in _blocks(file):
        batch.append((cid, data))
        size += len(data)
        if size >= _BATCH_BYTES:
            store.put_all(batch)
            batch, size = [], 0
        progress(len(data))
    store.put_all(batch)
    return roots


def _blocks(file: IO[bytes]) -> Iterator[tuple[Cid, bytes]]:
    while section := _section(file, CID_BYTES + MAX_BLOCK_BYTES, "a block"):
        cid, data = Cid.from_bytes(section[:CID_BYTES]), section[CID_BYTES:]
        if not cid.names(data):
            raise DecodeError(f"a CAR file whose bytes of block {cid} are not its own")
        yield cid, data


def _roots(header: bytes) -> tuple[Cid, ...]:
    said = dagcbor.decode(header)
    version = said.get("version") if isinstance(said, dict) else None
    if version != 1:
        raise DecodeError(f"a CAR file of version {version!r}, only 1 is read: ipfs-car and go-car convert")
    roots = said.get("roots")
    if not isinstance(roots, list) or len(roots) > MAX_ROOTS or not all(isinstance(root, Cid) for root in roots):
        raise DecodeError(f"the roots of a CAR file are not a list of at most {MAX_ROOTS} links")
    return tuple(roots)


def _section(file: IO[bytes], limit: int, what: str) -> bytes:
    """The next length and as many bytes; empty at the end of the file."""
    size = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            if shift:
                raise DecodeError(f"a CAR file that ends within {what}")
            return b""
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            break
        if shift > 63:
            raise DecodeError(f"a CAR file with a length of more than 9 bytes before {what}")
    if not 0 < size <= limit:
        raise DecodeError(f"a CAR file in which {what} has {size} bytes, allowed are 1 to {limit}")
    data = file.read(size)
    if len(data) < size:
        raise DecodeError(f"a CAR file that ends within {what}")
    return data
