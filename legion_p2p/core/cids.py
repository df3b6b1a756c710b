"""Content ids: what a block is called is the hash of its bytes (CIDv1, sha2-256), as IPFS has it.

Two kinds of blocks exist here: `raw` bytes, and `dag-cbor` nodes that link to others (core/dagcbor.py).
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import cid
import multihash

from legion_p2p.errors import DecodeError

RAW = "raw"
DAG_CBOR = "dag-cbor"
CODECS = (RAW, DAG_CBOR)
CID_BYTES = 36  # version, codec, hash function, length, 32 bytes of digest
MAX_CID_CHARS = 100  # base32 has 59; base16, the longest form that people write, 73


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """The name of a block. `str()` gives the usual form, base32 in lower case."""

    raw: bytes
    """Its 36 bytes, as they stand in links, in CAR files and on the wire."""

    @classmethod
    def of(cls, data: bytes | memoryview, codec: str = RAW) -> "Cid":
        """The CID of a block of these bytes."""
        return cls(_prefix(codec) + hashlib.sha256(data).digest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Cid":
        """Raises: DecodeError, if it is not a CIDv1 of sha2-256 and a known codec."""
        if len(raw) != CID_BYTES or not any(raw.startswith(_prefix(codec)) for codec in CODECS):
            raise DecodeError(f"a CID of {len(raw)} bytes, {raw[:8].hex()}...: must be a CIDv1, sha2-256, raw or dag-cbor")
        return cls(raw)

    @classmethod
    def parse(cls, text: str) -> "Cid":
        """Read what a person or a link gives, in any multibase. Raises: DecodeError."""
        if len(text) > MAX_CID_CHARS:
            raise DecodeError(f"a CID of {len(text)} characters, at most {MAX_CID_CHARS}")
        try:
            made: Any = cid.make_cid(text)
            raw = bytes(made.buffer)
        except Exception as bad:  # the parsers below it raise errors of many kinds
            raise DecodeError(f"{text!r} is not a CID") from bad
        return cls.from_bytes(raw)

    @property
    def codec(self) -> str:
        return next(codec for codec in CODECS if self.raw.startswith(_prefix(codec)))

    def names(self, data: bytes | memoryview) -> bool:
        """Whether this is the CID of these bytes."""
        return self.raw[-32:] == hashlib.sha256(data).digest()

    def __str__(self) -> str:
        made: Any = cid.from_bytes_strict(self.raw)
        return str(made.encode("base32").decode())


@cache
def _prefix(codec: str) -> bytes:
    """What stands in front of the digest."""
    made: Any = cid.make_cid(1, codec, multihash.encode(bytes(32), "sha2-256"))
    return bytes(made.buffer[:-32])
