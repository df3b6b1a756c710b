"""Who got and sent what: bytes by peer, by what they are for, and by hour.

Two ledgers and one count make the whole:

    the services' ledger   bodies of requests and replies, by the type of the request
    the network's ledger   gossip, the DHT, circuits and whatever else runs between peers
    the sockets' count     everything; what the ledgers leave is headers, encryption, handshakes, and what broke off on its way

All of it is bounded: peers by MAX_PEERS, hours by MAX_HOURS.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from legion_p2p.core.bounded import BoundedMap

MAX_PEERS = 256  # more than a member talks to in an hour; those that were silent longest are forgotten first
MAX_HOURS = 48
HOUR_S = 3600
MAX_TAG_BYTES = 48  # where the name of a message's type ends at the latest

OTHER_CLASS = "other"
GOSSIP, DHT, BLOCKS = "gossip", "finding peers", "IPFS clients"
UPKEEP, RELAYED, SPEED = "keeping connections", "relayed for others", "tests of bandwidth"
"""What the network itself sends and receives bytes for."""
_CLASSES = {
    "pushes": ("push",),
    "updates": ("update", "updates_made"),
    "sharded steps": ("pull_unit", "push_gradient", "replicate_step", "put_unit", "appoint_unit", "ask_unit"),
    "catching up": ("get_updates", "get_shard", "handover", "ancestry_query"),
    "checkpoints and data": ("get_blocks", "has_blocks", "get_checkpoints"),
    "regions": ("sync_request", "relay_request", "get_representative"),
    "members": ("exchange", "ping", "ping_for", "accusation", "get_runs", "get_spec", "get_answers", "get_marks"),
}
_CLASS_OF = {tag.encode(): name for name, tags in _CLASSES.items() for tag in tags}
_TYPE = b"\xa4type"

K = TypeVar("K")


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


class HourlyBytes:
    """Bytes by hours since the epoch."""

    def __init__(self) -> None:
        self.hours: BoundedMap[int, MovedBytes] = BoundedMap(MAX_HOURS)

    def moved(self, sent_bytes: int, received_bytes: int, now_s: float) -> None:
        """`now_s`: since the epoch."""
        hour = int(now_s // HOUR_S)
        self.hours[hour] = self.hours.get(hour, NOTHING).plus(sent_bytes, received_bytes)


class TrafficLedger:
    """Bytes of one peer, as it has entered them."""

    def __init__(self) -> None:
        self.by_peer: BoundedMap[str, MovedBytes] = BoundedMap(MAX_PEERS)
        self.by_class: dict[str, MovedBytes] = {}
        self.by_hour = HourlyBytes()

    def moved(self, peer: str, kind: str, sent_bytes: int, received_bytes: int, now_s: float) -> None:
        """This many bytes have passed, for something of that kind. `now_s`: since the epoch."""
        self.by_peer[peer] = self.by_peer.get(peer, NOTHING).plus(sent_bytes, received_bytes)
        self.by_class[kind] = self.by_class.get(kind, NOTHING).plus(sent_bytes, received_bytes)
        self.by_hour.moved(sent_bytes, received_bytes, now_s)


NOTHING = MovedBytes()


class SocketBytes(msgspec.Struct, frozen=True):
    """What all connections to peers together have carried, as the sockets counted it."""

    total: MovedBytes = NOTHING
    local: MovedBytes = NOTHING
    """Of it, with this machine and its local network, which no volume of a month counts."""
    by_hour: dict[int, MovedBytes] = {}


class NetworkTraffic(msgspec.Struct, frozen=True):
    """What a network knows of its traffic beside requests."""

    ledger: TrafficLedger
    sockets: SocketBytes | None = None
    """None: there are no sockets, as in a simulation."""


def summed(books: Iterable[Mapping[K, MovedBytes]]) -> dict[K, MovedBytes]:
    """Several books as one."""
    found: dict[K, MovedBytes] = {}
    for book in books:
        for name, moved in book.items():
            found[name] = found.get(name, NOTHING).plus(moved.sent_bytes, moved.received_bytes)
    return found


def left_over(total: MovedBytes, accounted: Iterable[MovedBytes]) -> MovedBytes:
    """What the sockets counted and no ledger names. Never negative: a request that fails before it is sent stands in a ledger."""
    sent, received = total.sent_bytes, total.received_bytes
    for one in accounted:
        sent, received = sent - one.sent_bytes, received - one.received_bytes
    return MovedBytes(max(0, sent), max(0, received))
