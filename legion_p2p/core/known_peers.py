"""What a node still knows of others after a restart: where they were found, and what they provided.

Only peers that this node was connected to are remembered: what a stranger says about others is worth nothing a week later, and
must not be what a node starts with.
"""

from collections.abc import Iterable

import msgspec

from legion_p2p.core.addresses import parse_peer_address
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UsageError

MAX_REMEMBERED_PEERS = 1024  # twice as many as a node has connections; 0.5 MB on the disk
MAX_REMEMBERED_ADDRESSES = 8  # of each; a host with more interfaces than this has others that work
MAX_REMEMBERED_RECORDS = 16_384  # of the DHT, of all peers together: 250 peers that provide 64 shards each; 1.2 MB
MAX_RECORD_KEY_BYTES = 80  # what libp2p accepts of others


class Provided(msgspec.Struct, frozen=True, array_like=True):
    """A record of the DHT: the place of a key that a peer provides, and when it said so, in seconds since the epoch."""

    key: bytes
    at: float


class KnownPeer(msgspec.Struct, frozen=True):
    """A peer, its addresses without the trailing /p2p/ part, and when there was a connection last."""

    id: str
    addresses: tuple[str, ...]
    connected_at: float
    provides: tuple[Provided, ...] = ()


class KnownPeers(msgspec.Struct, frozen=True):
    """All of them, the one that was connected last first."""

    peers: tuple[KnownPeer, ...] = ()

    def contacts(self, n: int) -> tuple[str, ...]:
        """Where to enter the network: an address of each of the `n` peers that were connected last."""
        return tuple(f"{peer.addresses[0]}/p2p/{peer.id}" for peer in self.peers[:n])


def bounded(peers: Iterable[KnownPeer]) -> KnownPeers:
    """Those of them that can be used, newest first, within the limits above. What is malformed is left out."""
    kept: dict[str, KnownPeer] = {}
    n_records = 0
    for peer in sorted(peers, key=lambda peer: -peer.connected_at):
        addresses = tuple(a for a in peer.addresses if _is_dialable(a, peer.id))[:MAX_REMEMBERED_ADDRESSES]
        if not addresses or peer.id in kept:
            continue
        room = MAX_REMEMBERED_RECORDS - n_records
        provides = tuple(record for record in peer.provides if 0 < len(record.key) <= MAX_RECORD_KEY_BYTES)[:room]
        n_records += len(provides)
        kept[peer.id] = KnownPeer(peer.id, addresses, peer.connected_at, provides)
        if len(kept) == MAX_REMEMBERED_PEERS:
            break
    return KnownPeers(tuple(kept.values()))


def _is_dialable(address: str, peer: str) -> bool:
    try:
        where, who = parse_peer_address(f"{address}/p2p/{peer}")
    except UsageError:
        return False
    return (where, who) == (address, PeerId(peer))
