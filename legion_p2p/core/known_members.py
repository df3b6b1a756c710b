"""Which announcements a peer has, in 16 bytes each: whoever it asks sends only what is newer."""

import hashlib
import struct
from collections.abc import Iterable
from functools import lru_cache

from legion_p2p.core.announcement import Announcement
from legion_p2p.errors import DecodeError

_ROW = struct.Struct(">8sII")  # the start of a hash of the peer's id; incarnation; seq
ROW_BYTES = _ROW.size
_MOST = 0xFFFFFFFF  # an order that does not fit is written as the largest


def pack_known(announcements: Iterable[Announcement]) -> bytes:
    """A row for each."""
    return b"".join(_ROW.pack(_mark(a.peer_id), *_order(a)) for a in announcements)


class KnownMembers:
    """What another peer says that it has."""

    def __init__(self, packed: bytes) -> None:
        """Raises: DecodeError."""
        if len(packed) % ROW_BYTES:
            raise DecodeError(f"known members of {len(packed)} bytes, must be a multiple of {ROW_BYTES}")
        self._orders = {mark: (incarnation, seq) for mark, incarnation, seq in _ROW.iter_unpack(packed)}

    def lacks(self, announcement: Announcement) -> bool:
        """Whether this one would be news to it."""
        known = self._orders.get(_mark(announcement.peer_id))
        return known is None or known < _order(announcement)


def _order(announcement: Announcement) -> tuple[int, int]:
    incarnation, seq = announcement.order
    return min(incarnation, _MOST), min(seq, _MOST)


@lru_cache(maxsize=4096)
def _mark(peer: str) -> bytes:
    return hashlib.blake2b(f"legion/known/{peer}".encode(), digest_size=8).digest()
