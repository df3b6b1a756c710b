"""Whether a peer is where it says, by what others measured of it.

All peers stand on a ring, in the order of a hash of their ids; those next after a peer are its witnesses. Each measures the round
trips to the peers that it is a witness of, and announces them.

    claimed coordinate -> believed, while too few witnesses speak, or AGREEING of them agree
                       -> doubted, where more than that measured something else: it counts for nothing

A peer can make its round trips longer, but not shorter than they are: so it cannot seem close to honest witnesses that are far.

Never happens: a peer chooses who speaks about it, or about whom it speaks; fewer than MIN_WITNESSES, or a minority of 40 %, make
others doubt a peer.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from legion_p2p.core.coordinates import MAX_RTT_S, UNSETTLED, Coordinate
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError

N_WITNESSES = 8  # of each peer: with a tenth of all lying, 4 of 8 do in one case of 200
MIN_WITNESSES = 3
TOLERANCE_S = 0.020  # of the machine and of queues, whatever the distance
TOLERANCE = 0.35  # of the round trip: the errors of two coordinates that are still settling
AGREEING = 0.6  # share of the witnesses; a minority may lie, or be badly placed itself
MAX_TESTIMONIES = 16  # in one announcement: those that two views of the ring may ask for
_TESTIMONY = struct.Struct(">8sI")  # the start of the peer's hash; microseconds
TESTIMONY_BYTES = _TESTIMONY.size


class Witness(msgspec.Struct, frozen=True):
    """Somebody's measured round trip to a peer, and where the witness is."""

    coordinate: Coordinate
    rtt_s: float


class Account(msgspec.Struct, frozen=True):
    """What a member announces of where it is, and what it measured of others, packed."""

    peer_id: PeerId
    coordinate: Coordinate | None
    testimonies: bytes = b""


def subjects_of(witness: PeerId, peers: Iterable[PeerId]) -> list[PeerId]:
    """Whom it is to measure, of all `peers`."""
    ring = _ring({*peers, witness})
    at = ring.index(witness)
    return [ring[at - back] for back in range(1, min(N_WITNESSES, len(ring) - 1) + 1)]


def doubted(accounts: Sequence[Account]) -> frozenset[PeerId]:
    """Those of all members whose coordinate is not believed. All who see the same announcements agree."""
    by_peer = {account.peer_id: account for account in accounts}
    ring = _ring(by_peer)
    spoken = {peer: unpack_testimonies(account.testimonies) for peer, account in by_peer.items() if account.testimonies}
    found = []
    for at, peer in enumerate(ring):
        claimed = by_peer[peer].coordinate
        if claimed is None:
            continue
        witnesses = []
        for ahead in range(1, min(N_WITNESSES, len(ring) - 1) + 1):
            other = ring[(at + ahead) % len(ring)]
            rtt_s, where = spoken.get(other, {}).get(_mark(peer)), by_peer[other].coordinate
            if rtt_s is not None and where is not None:
                witnesses.append(Witness(where, rtt_s))
        if is_believed(claimed, witnesses) is False:
            found.append(peer)
    return frozenset(found)


def is_believed(claimed: Coordinate, witnesses: Iterable[Witness]) -> bool | None:
    """Whether a peer is where it says; None: too few can tell, or it does not claim to know.

    Witnesses that do not know where they are themselves are left out.
    """
    if claimed.error >= UNSETTLED:
        return None
    fits = [_fits(claimed, w) for w in witnesses if 0 < w.rtt_s <= MAX_RTT_S and w.coordinate.error < UNSETTLED]
    if len(fits) < MIN_WITNESSES:
        return None
    return sum(fits) >= AGREEING * len(fits)


def pack_testimonies(measured: Iterable[tuple[PeerId, float]]) -> bytes:
    """Peers and the seconds of the round trip to them, of at most MAX_TESTIMONIES."""
    return b"".join(
        _TESTIMONY.pack(_mark(peer), round(1e6 * min(rtt_s, MAX_RTT_S))) for peer, rtt_s in list(measured)[:MAX_TESTIMONIES]
    )


def unpack_testimonies(packed: bytes) -> dict[bytes, float]:
    """Seconds by the start of a peer's hash. Raises: DecodeError."""
    if len(packed) % TESTIMONY_BYTES:
        raise DecodeError(f"testimonies of {len(packed)} bytes, must be a multiple of {TESTIMONY_BYTES}")
    return {mark: micros / 1e6 for mark, micros in _TESTIMONY.iter_unpack(packed)}


def _ring(peers: Iterable[PeerId]) -> list[PeerId]:
    return sorted(peers, key=_mark)


@lru_cache(maxsize=4096)
def _mark(peer: PeerId) -> bytes:
    return hashlib.sha256(f"legion/witness/{peer}".encode()).digest()[:8]


def _fits(claimed: Coordinate, witness: Witness) -> bool:
    off_s = abs(claimed.rtt_s(witness.coordinate) - witness.rtt_s)
    return off_s <= max(TOLERANCE_S, TOLERANCE * witness.rtt_s)
