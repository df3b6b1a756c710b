"""Which versions of their shards members hold, as announcements say it, and what is asked about it.

Where shards are few, an announcement carries a mark of eight bytes for each. Where they are many, it carries a digest of all
marks: members that hold the same need no more. Others ask about the shards that concern them (`GetMarks`), and show in two bytes
a shard what they hold themselves, so that the answer names only the shards in which the two differ.

The two bytes are a product of the mark with a random odd number, of which the highest bits are kept: two marks look alike to one
question in 2^15, and to the next question again as rarely, because it brings another number.
"""

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import median_low

import msgspec

from legion_p2p.core.announcement import MARK_BYTES, MAX_MARKS_SHOWN, Announcement, Mark, mark_at, unpack_marks, version_at
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError

DIGEST_BYTES = 16
CHECK_BYTES = 2
ROW_BYTES = 10  # of an answer: a shard's number, and its mark
MAX_BOOKS = 1024  # members of one region whose marks are remembered: many times those that a region has
KEEP_S = 60.0  # an answer about a shard: longer than the announcements of a member of the largest region are apart

_ROW = struct.Struct(">HQ")


class ShownMarks(msgspec.Struct, frozen=True):
    """What an announcement says of a peer's shards. All of it is empty while the peer does not hold them all."""

    marks: bytes = b""
    digest: bytes = b""
    version: int = 0
    """Where there is a digest: the version in the middle of those of all shards."""


@lru_cache(maxsize=16)
def shown(packed: bytes) -> ShownMarks:
    """What to announce of these marks of all shards."""
    if len(packed) <= MAX_MARKS_SHOWN * MARK_BYTES:
        return ShownMarks(packed)
    return ShownMarks(b"", _digest(packed), median_low(mark.version for mark in unpack_marks(packed)))


def state_of(packed: bytes) -> bytes:
    """What `Announcement.state` is for a member that holds shards of these marks."""
    told = shown(packed)
    return told.marks or told.digest


def announced_version(announcement: Announcement, shard: int) -> int | None:
    """The version of a shard that a member says it has, or in a run of many shards about that; None where it says nothing."""
    return announcement.version if announcement.marks_digest else version_at(announcement.marks, shard)


@lru_cache(maxsize=16)
def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=DIGEST_BYTES, person=b"legion/marks").digest()


# questions and answers


def pack_shards(shards: Collection[int], n_shards: int) -> bytes:
    """A bit for each shard of the run."""
    bits = sum(1 << shard for shard in set(shards))
    return bits.to_bytes(-(-n_shards // 8), "little")


def unpack_shards(packed: bytes, n_shards: int) -> list[int]:
    """In their order. Raises: DecodeError."""
    bits = int.from_bytes(packed, "little")
    if bits >> n_shards:
        raise DecodeError(f"shard {bits.bit_length() - 1}, there are {n_shards}")
    return [shard for shard, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def pack_checks(marks: bytes, shards: Collection[int], salt: int) -> bytes:
    """What the asker holds of these shards, two bytes each."""
    return struct.pack(f">{len(shards)}H", *_checks(_numbers(marks), shards, salt))


def _numbers(marks: bytes) -> tuple[int, ...]:
    """Each mark as one number. All at once: anybody may ask about all shards, in half a kilobyte."""
    return struct.unpack(f">{len(marks) // MARK_BYTES}Q", marks)


def _checks(held: Sequence[int], shards: Iterable[int], salt: int) -> list[int]:
    factor = 2 * salt + 1
    return [held[shard] * factor >> 48 & 0xFFFF for shard in shards]


def differences(marks: bytes, shards: Collection[int], checks: bytes, salt: int) -> bytes:
    """The rows of an answer: of those shards in which the asker differs, or of all where it shows no checks.

    Raises: DecodeError.
    """
    if checks and len(checks) != CHECK_BYTES * len(shards):
        raise DecodeError(f"checks of {len(checks)} bytes for {len(shards)} shards, {CHECK_BYTES} each are expected")
    held, differing = _numbers(marks), shards
    if checks:
        theirs = struct.unpack(f">{len(shards)}H", checks)
        ours = _checks(held, shards, salt)
        differing = [shard for shard, one, other in zip(shards, theirs, ours, strict=True) if one != other]
    return b"".join([_ROW.pack(shard, held[shard]) for shard in differing])


def unpack_rows(packed: bytes, asked: Collection[int]) -> dict[int, Mark]:
    """By shard. Raises: DecodeError, also where one is of a shard that was not asked about."""
    if len(packed) % ROW_BYTES:
        raise DecodeError(f"marks of {len(packed)} bytes, must be a multiple of {ROW_BYTES}")
    rows = {shard: Mark(mark >> 32, mark & 0xFFFFFFFF) for shard, mark in _ROW.iter_unpack(packed)}
    if not rows.keys() <= set(asked):
        raise DecodeError(f"marks of shards {sorted(rows.keys() - set(asked))[:5]}, which were not asked about")
    return rows


# what is known


class _Book(msgspec.Struct):
    """Of one member."""

    order: tuple[int, int] = (-1, -1)
    """Of the announcement that was taken in last."""
    whole: bytes = b""
    """The marks of all shards, where that announcement said them, or what this peer itself held."""
    compared: bytes = b""
    """What this peer held when it last compared digests: the same object is not compared again."""
    answers: dict[int, tuple[Mark, float]] = msgspec.field(default_factory=dict)
    """What it has answered about some shards, and when."""


class MarkBooks:
    """The marks of the other members, as far as they are known here."""

    def __init__(self, n_shards: int) -> None:
        self._n_bytes = MARK_BYTES * n_shards
        self._books: BoundedMap[PeerId, _Book] = BoundedMap(MAX_BOOKS)

    def take(self, peer: PeerId, announcement: Announcement | None, ours: bytes) -> bool:
        """What a member announces; None: nothing that counts. `ours`: the marks of this peer, empty while it does not hold all.

        False where its marks are to be asked for. Its announcements may be taken in more than once.
        """
        if announcement is None:
            self._books.pop(peer, None)
            return True
        book = self._books.get(peer)
        if book is None:
            book = self._books[peer] = _Book()
        if book.order == announcement.order and (book.whole or book.compared is ours):
            return bool(book.whole) or not announcement.marks_digest
        book.order, book.whole, book.compared = announcement.order, b"", ours
        if announcement.marks_digest:
            if ours and announcement.marks_digest == _digest(ours):
                book.whole = ours
        elif len(announcement.marks) == self._n_bytes:
            book.whole = announcement.marks
        if book.whole or not announcement.marks_digest:  # or it does not hold all of them any more
            book.answers.clear()
        return bool(book.whole) or not announcement.marks_digest

    def answered(self, peer: PeerId, marks: Mapping[int, Mark], now: float) -> None:
        """It has answered about some shards."""
        book = self._books.get(peer)
        if book is not None and not book.whole:
            book.answers = {shard: answer for shard, answer in book.answers.items() if now - answer[1] < KEEP_S}
            book.answers.update((shard, (mark, now)) for shard, mark in marks.items())

    def mark(self, peer: PeerId, shard: int) -> Mark | None:
        """None where nothing is known."""
        book = self._books.get(peer)
        if book is None:
            return None
        answer = book.answers.get(shard)
        return answer[0] if answer is not None else mark_at(book.whole, shard)

    def whole(self, peer: PeerId) -> bytes:
        """The marks of all shards that it announced; empty where they are not known."""
        book = self._books.get(peer)
        return b"" if book is None else book.whole

    def unknown(self, peer: PeerId, shards: Iterable[int], newer_than: float) -> list[int]:
        """Those of `shards` that it has to be asked about: where nothing is known, or only what it answered before this time."""
        book = self._books.get(peer)
        if book is None or book.whole:
            return []
        return [shard for shard in shards if shard not in book.answers or book.answers[shard][1] <= newer_than]

    def known(self, peer: PeerId) -> list[int]:
        """The shards of which `mark` is known."""
        book = self._books.get(peer)
        if book is None:
            return []
        return list(range(len(book.whole) // MARK_BYTES)) if book.whole else list(book.answers)
