"""Who got and sent what: bytes of requests and replies by peer, by what they are for, and by hour.

What travels below, and gossip and the DHT, is not in it. All of it is bounded: peers by MAX_PEERS, hours by MAX_HOURS.
"""

import msgspec

from legion_p2p.core.bounded import BoundedMap

MAX_PEERS = 256  # more than a member talks to in an hour; those that were silent longest are forgotten first
MAX_HOURS = 48
HOUR_S = 3600
MAX_TAG_BYTES = 48  # where the name of a message's type ends at the latest

OTHER_CLASS = "other"
_CLASSES = {
    "training": ("push", "update"),
    "sharded steps": ("pull_unit", "push_gradient", "replicate_step", "put_unit", "appoint_unit", "ask_unit"),
    "catching up": ("get_updates", "get_shard", "handover", "ancestry_query"),
    "checkpoints and data": ("get_blocks", "has_blocks", "get_checkpoints"),
    "regions": ("sync_request", "relay_request"),
    "members": ("exchange", "ping", "ping_for", "accusation", "get_runs", "get_spec"),
}
_CLASS_OF = {tag.encode(): name for name, tags in _CLASSES.items() for tag in tags}
_TYPE = b"\xa4type"


class MovedBytes(msgspec.Struct, frozen=True):
    """Bytes both ways."""

    sent_bytes: int = 0
    received_bytes: int = 0

    def plus(self, sent_bytes: int, received_bytes: int) -> "MovedBytes":
        return MovedBytes(self.sent_bytes + sent_bytes, self.received_bytes + received_bytes)


def class_of(request: bytes | bytearray | memoryview) -> str:
    """What a request is for, by the name of its type, without decoding it; OTHER_CLASS for anything that is not known."""
    head = bytes(request[:MAX_TAG_BYTES])  # what came over the network stands in a buffer that has no hash
    at = head.find(_TYPE)
    if at < 0 or at + len(_TYPE) >= len(head) or head[at + len(_TYPE)] & 0xE0 != 0xA0:
        return OTHER_CLASS
    begin = at + len(_TYPE) + 1
    return _CLASS_OF.get(head[begin : begin + (head[begin - 1] & 0x1F)], OTHER_CLASS)


class TrafficLedger:
    """The books of one peer."""

    def __init__(self) -> None:
        self.by_peer: BoundedMap[str, MovedBytes] = BoundedMap(MAX_PEERS)
        self.by_class: dict[str, MovedBytes] = {}
        self.by_hour: BoundedMap[int, MovedBytes] = BoundedMap(MAX_HOURS)
        """By hours since the epoch."""

    def moved(self, peer: str, kind: str, sent_bytes: int, received_bytes: int, now_s: float) -> None:
        """A request of that kind, or a reply to one, has passed. `now_s`: since the epoch."""
        hour = int(now_s // HOUR_S)
        self.by_peer[peer] = self.by_peer.get(peer, _NOTHING).plus(sent_bytes, received_bytes)
        self.by_class[kind] = self.by_class.get(kind, _NOTHING).plus(sent_bytes, received_bytes)
        self.by_hour[hour] = self.by_hour.get(hour, _NOTHING).plus(sent_bytes, received_bytes)


_NOTHING = MovedBytes()
