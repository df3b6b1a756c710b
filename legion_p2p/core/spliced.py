"""Bytes that lie in several places, so that a payload of megabytes is sent from where it is.

To copy a payload into the message that carries it takes as much CPU as to encrypt it, most of it for memory that is new. So a
long message is the bytes before its payload, the payload itself, and the bytes after it.
"""

from collections.abc import Iterable, Iterator


class Spliced:
    """Bytes in several places, in order. Whoever made them must not change them before they are sent."""

    __slots__ = ("_n_bytes", "parts")

    def __init__(self, *parts: bytes | memoryview) -> None:
        self.parts = parts
        self._n_bytes = sum(map(len, parts))

    def __len__(self) -> int:
        return self._n_bytes

    def __bytes__(self) -> bytes:
        """A copy in one piece."""
        return b"".join(self.parts)


Bytes = bytes | Spliced
"""Of a message that is sent."""


def parts_of(message: Bytes) -> tuple[bytes | memoryview, ...]:
    """The places where it lies."""
    return message.parts if isinstance(message, Spliced) else (message,)


def start_of(message: Bytes) -> bytes | memoryview:
    """Its first bytes: of a message, all before its payload."""
    return parts_of(message)[0]


class Pieces:
    """Bytes in several places that are taken a piece at a time, in order, and copied only where one piece lies in two places."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = [memoryview(part) for part in reversed(tuple(parts)) if len(part)]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def take(self, n_bytes: int) -> bytes | memoryview:
        """This many, or all that are left."""
        taken: list[memoryview] = []
        while self._parts and n_bytes:
            part = self._parts.pop()
            if len(part) > n_bytes:
                self._parts.append(part[n_bytes:])
                part = part[:n_bytes]
            taken.append(part)
            n_bytes -= len(part)
        return taken[0] if len(taken) == 1 else b"".join(taken)


def coalesced(parts: Iterable[bytes | memoryview], limit: int) -> Iterator[bytes | memoryview]:
    """The same bytes in fewer parts: neighbours that have at most `limit` bytes together are one. Longer ones are not copied."""
    short: list[bytes | memoryview] = []
    for part in parts:
        if short and sum(map(len, short)) + len(part) > limit:
            yield b"".join(short)
            short.clear()
        if len(part) > limit:
            yield part
        elif len(part):
            short.append(part)
    if short:
        yield b"".join(short)
