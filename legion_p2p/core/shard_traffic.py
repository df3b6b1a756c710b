"""How many shards the messages of a peer have carried, and in how many bytes: what compression saves is told from that.

A message is recognized by the name of its type, without decoding it. Sharded runs are not counted: their messages carry tensors.
"""

import msgspec

PUSHES, UPDATES, WHOLE = "pushes", "updates", "whole shards"
_KINDS = {b"push": PUSHES, b"update": UPDATES, b"updates": UPDATES, b"shard_state": WHOLE}
_TYPE = b"\xa4type"
_UPDATES = b"\xa7updates"
_SHORT_ARRAY, _LONG_ARRAY = 0x90, 0xDC  # of msgpack: up to 15 entries, and up to 65,535
MAX_HEAD_BYTES = 64  # where the type and the number of updates end at the latest


class Carried(msgspec.Struct, frozen=True):
    """Of one kind, in one direction."""

    n_shards: int = 0
    n_bytes: int = 0

    def plus(self, n_shards: int, n_bytes: int) -> "Carried":
        return Carried(self.n_shards + n_shards, self.n_bytes + n_bytes)


class ShardTraffic:
    """Of one peer, both ways, by kind."""

    def __init__(self) -> None:
        self.sent: dict[str, Carried] = {}
        self.received: dict[str, Carried] = {}

    def note_sent(self, start: bytes | bytearray | memoryview, n_bytes: int) -> None:
        """A message that begins so was sent; it had so many bytes."""
        _note(self.sent, start, n_bytes)

    def note_received(self, start: bytes | bytearray | memoryview, n_bytes: int) -> None:
        _note(self.received, start, n_bytes)


def shards_in(start: bytes | bytearray | memoryview) -> tuple[str, int]:
    """What kind of shards a message that begins so carries, and how many. ("", 0): none."""
    head = bytes(start[:MAX_HEAD_BYTES])
    at = head.find(_TYPE) + len(_TYPE)
    if at < len(_TYPE) or at >= len(head):
        return "", 0
    end = at + 1 + (head[at] & 0x1F)
    tag = head[at + 1 : end]
    kind = _KINDS.get(tag, "")
    n = _length_of_array(head, head.find(_UPDATES, end)) if tag == b"updates" else int(kind != "")
    return (kind, n) if n else ("", 0)


def _length_of_array(head: bytes, at: int) -> int:
    """Of the one that follows its name; 0 where there is none."""
    begin = at + len(_UPDATES)
    if at < 0 or begin >= len(head):
        return 0
    if head[begin] == _LONG_ARRAY:
        return int.from_bytes(head[begin + 1 : begin + 3], "big")
    return head[begin] & 0x0F if head[begin] & 0xF0 == _SHORT_ARRAY else 0


def _note(book: dict[str, Carried], start: bytes | bytearray | memoryview, n_bytes: int) -> None:
    kind, n_shards = shards_in(start)
    if kind:
        book[kind] = book.get(kind, Carried()).plus(n_shards, n_bytes)
