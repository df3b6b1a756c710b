"""What streams of libp2p carry, by what they are for: gossip, the DHT, blocks for IPFS clients, and the rest.

Requests run over such streams as well, and are counted by those that make them. So is what runs inside a circuit: its ends count
the streams inside it, and only the relay counts the circuit itself.
"""

import time
from collections.abc import Callable
from typing import Final

from libp2p.network.swarm import Swarm

from legion_p2p.core.contact import Handler
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.spliced import Bytes
from legion_p2p.core.traffic_ledger import BLOCKS, DHT, GOSSIP, RELAYED, SPEED, UPKEEP, TrafficLedger
from legion_p2p.net.patches import KAD_PROTOCOL
from legion_p2p.net.relay import HOP, STOP
from legion_p2p.net.speed import PROTOCOL as SPEED_PROTOCOL
from legion_p2p.net.streams import PROTOCOLS

INTERNAL_CLASSES: Final = {"discovery": DHT}
"""What requests between the networks of two peers are for, by their service; all else keeps connections."""

StreamMeter = Callable[[int, int], None]
"""Told of bytes that were sent, and received."""


class StreamMeters:
    """Makes the meters of one host."""

    def __init__(self, swarm: Swarm, wall_time: Callable[[], float] = time.time) -> None:
        self.ledger = TrafficLedger()
        self._wall_time = wall_time
        swarm.meter_of = self.meter_of  # type: ignore[attr-defined]  # called by net/patches.py, once a stream has its protocol

    def meter_of(self, peer: str, protocol: str, is_initiator: bool) -> StreamMeter | None:
        """What a stream tells of its bytes; None: others count them."""
        kind = class_of_stream(protocol, is_initiator)
        if not kind:
            return None

        def moved(sent_bytes: int, received_bytes: int) -> None:
            self.ledger.moved(peer, kind, sent_bytes, received_bytes, self._wall_time())

        return moved

    def asked(self, peer: PeerId, service: str, sent_bytes: int, received_bytes: int) -> None:
        """A request of a part of the network, or a reply to one, has passed."""
        self.ledger.moved(peer, INTERNAL_CLASSES.get(service, UPKEEP), sent_bytes, received_bytes, self._wall_time())

    def answering(self, service: str, handler: Handler) -> Handler:
        """The handler, with what it takes and gives counted."""

        async def counted(peer: PeerId, body: bytes) -> Bytes | ThrottledReply[Bytes]:
            self.asked(peer, service, 0, len(body))
            reply = await handler(peer, body)
            self.asked(peer, service, len(reply.reply if isinstance(reply, ThrottledReply) else reply), 0)
            return reply

        return counted


def class_of_stream(protocol: str, is_initiator: bool) -> str:
    """What a stream of this protocol is for; empty: its bytes are counted elsewhere."""
    if protocol in PROTOCOLS.values():
        return ""
    if protocol in (HOP, STOP):
        is_relay = is_initiator == (protocol == STOP)  # a relay is asked for a circuit, and opens the second half of it
        return RELAYED if is_relay else ""
    if protocol == KAD_PROTOCOL:
        return DHT
    if protocol.startswith("/meshsub/"):
        return GOSSIP
    if protocol == SPEED_PROTOCOL:
        return SPEED
    return BLOCKS if protocol.startswith("/ipfs/bitswap/") else UPKEEP
