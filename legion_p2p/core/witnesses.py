"""Whether a peer is where it says, by what others measured of it.

All peers stand on a ring, in the order of a hash of their ids. Of the next N_CANDIDATES after a peer the nearest to where it
claims to be are its witnesses: they can tell best. Each measures the round trips to the peers that it is a witness of, and
announces them.

    claimed coordinate -> believed, while too few witnesses speak, or AGREEING of them agree
                       -> doubted, where more than that measured something else: it counts for nothing

If most of the peers that can be judged would be doubted, none is: routes have changed, and all have to move.

A peer can make its round trips longer, but not shorter than they are: so it cannot seem close to honest witnesses that are far.

Never happens: a peer chooses its witnesses, or the peers that it is a witness of; fewer than MIN_WITNESSES, or a minority of
40 %, make others doubt a peer.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter

import msgspec

from legion_p2p.core.coordinates import MAX_RTT_S, UNSETTLED, Coordinate
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError

N_CANDIDATES = 16  # chance alone chooses them: with a tenth of all lying, 5 of them or more do in one case of 60
N_WITNESSES = 8
MIN_WITNESSES = 3
MIN_CONTRADICTING = 2  # of that many, to be more than 1 - AGREEING of them
TOLERANCE_S = 0.020  # of the machine and of queues, whatever the distance
TOLERANCE = 0.35  # of the round trip: the errors of two coordinates that are still settling
AGREEING = 0.6  # share of the witnesses; a minority may lie, or be badly placed itself
MAX_REMEMBERED = 512  # testimonies that were unpacked: most members say the same for a while
MAX_TESTIMONIES = 16  # in one announcement: twice what falls to each where regions are of one size
_TESTIMONY = struct.Struct(">8sI")  # the start of the peer's hash; microseconds
TESTIMONY_BYTES = _TESTIMONY.size
_FIRST_TWO = itemgetter(0, 1)


class Witness(msgspec.Struct, frozen=True):
    """Somebody's measured round trip to a peer, and where the witness is."""

    coordinate: Coordinate
    rtt_s: float


class Account(msgspec.Struct, frozen=True):
    """What a member announces of where it is, and what it measured of others, packed."""

    peer_id: PeerId
    coordinate: Coordinate | None
    testimonies: bytes = b""


class Ring:
    """All members that announced themselves, in the order of the hashes of their ids."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self.accounts = sorted(accounts, key=lambda account: _mark(account.peer_id))
        self._n_candidates = max(0, min(N_CANDIDATES, len(self.accounts) - 1))
        self._twice = self.accounts + self.accounts[: self._n_candidates]
        self._at = {account.peer_id: at for at, account in enumerate(self.accounts)}

    def witnesses_of(self, peer: PeerId) -> list[Account]:
        """The nearest to where it claims to be first. All peers that see the same announcements agree on them."""
        at = self._at[peer]
        claimed = self.accounts[at].coordinate
        if claimed is None:
            return []
        candidates = self._twice[at + 1 : at + 1 + self._n_candidates]
        away = [(claimed.rtt_s(c.coordinate), c.peer_id, c) for c in candidates if c.coordinate is not None]
        away.sort(key=_FIRST_TWO)
        return [account for _, _, account in away[:N_WITNESSES]]

    def subjects_of(self, witness: PeerId) -> list[PeerId]:
        """Whom it is to measure, in the order of the ring; at most MAX_TESTIMONIES."""
        at, n = self._at[witness], len(self.accounts)
        before = sorted((at - 1 - back) % n for back in range(self._n_candidates))  # it is a candidate for no others
        peers = (self.accounts[i].peer_id for i in before)
        chosen = (peer for peer in peers if any(other.peer_id == witness for other in self.witnesses_of(peer)))
        return list(islice(chosen, MAX_TESTIMONIES))


def doubted(ring: Ring) -> frozenset[PeerId]:
    """The members whose coordinate is not believed. All peers that see the same announcements agree."""
    spoken = {account.peer_id: _unpacked(account.testimonies) for account in ring.accounts}
    if not _any_may_be_doubted(ring.accounts, spoken):  # as a rule, and then nobody's witnesses need to be found
        return frozenset()
    n_speaking = Counter(chain.from_iterable(spoken.values()))
    verdicts = {}
    for account in ring.accounts:
        peer, claimed, mark = account.peer_id, account.coordinate, _mark(account.peer_id)
        if claimed is None or claimed.error >= UNSETTLED or n_speaking[mark] < MIN_WITNESSES:
            continue  # what its witnesses say, if it has any, decides nothing
        said = [(witness.coordinate, spoken[witness.peer_id].get(mark)) for witness in ring.witnesses_of(peer)]
        witnesses = [Witness(where, rtt_s) for where, rtt_s in said if where is not None and rtt_s is not None]
        if (verdict := is_believed(claimed, witnesses)) is not None:
            verdicts[peer] = verdict
    found = frozenset(peer for peer, verdict in verdicts.items() if not verdict)
    return found if 2 * len(found) <= len(verdicts) else frozenset()


def _any_may_be_doubted(accounts: Iterable[Account], spoken: Mapping[PeerId, Mapping[bytes, float]]) -> bool:
    """Whether at least MIN_CONTRADICTING members, witnesses or not, measured something else than some peer claims."""
    claims = {_mark(account.peer_id): account.coordinate for account in accounts}
    contradicting: Counter[bytes] = Counter()
    for account in accounts:
        here = account.coordinate
        if here is None or here.error >= UNSETTLED:
            continue
        for mark, rtt_s in spoken[account.peer_id].items():
            claimed = claims.get(mark)
            if claimed is not None and 0 < rtt_s <= MAX_RTT_S and not _fits(claimed, Witness(here, rtt_s)):
                contradicting[mark] += 1
                if contradicting[mark] >= MIN_CONTRADICTING:
                    return True
    return False


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


_unpacked = lru_cache(maxsize=MAX_REMEMBERED)(unpack_testimonies)


@lru_cache(maxsize=4096)
def _mark(peer: PeerId) -> bytes:
    return hashlib.sha256(f"legion/witness/{peer}".encode()).digest()[:8]


def _fits(claimed: Coordinate, witness: Witness) -> bool:
    off_s = abs(claimed.rtt_s(witness.coordinate) - witness.rtt_s)
    return off_s <= max(TOLERANCE_S, TOLERANCE * witness.rtt_s)
