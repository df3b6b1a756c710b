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
from collections import Counter, defaultdict
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
    """A witness's measured round trip to a peer, and where the witness is."""

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
        self._at_mark = {_mark(account.peer_id): at for at, account in enumerate(self.accounts)}

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
        peers = (self.accounts[i].peer_id for i in self.before(witness))
        return list(islice((peer for peer in peers if self.is_witness(witness, peer)), MAX_TESTIMONIES))

    def before(self, witness: PeerId) -> list[int]:
        """The places on the ring of those that it is a candidate for."""
        at, n = self._at[witness], len(self.accounts)
        return sorted((at - 1 - back) % n for back in range(self._n_candidates))

    def is_witness(self, witness: PeerId, peer: PeerId) -> bool:
        """Whether `witness`, a candidate, is one of `witnesses_of(peer)`."""
        at = self._at[peer]
        claimed, here = self.accounts[at].coordinate, self.accounts[self._at[witness]].coordinate
        if claimed is None or here is None:
            return False
        candidates = self._twice[at + 1 : at + 1 + self._n_candidates]
        mine = claimed.rtt_s(here), witness
        n_nearer = sum((claimed.rtt_s(c.coordinate), c.peer_id) < mine for c in candidates if c.coordinate is not None)
        return n_nearer < N_WITNESSES

    def is_candidate(self, candidate: PeerId, peer: PeerId) -> bool:
        """Whether the hash has made it a candidate for a witness of `peer`."""
        return 0 < (self._at[candidate] - self._at[peer]) % len(self.accounts) <= self._n_candidates

    def of_mark(self, mark: bytes) -> Account | None:
        """The account of the peer with this mark, if it is in the ring."""
        at = self._at_mark.get(mark)
        return None if at is None else self.accounts[at]

    def renew(self, account: Account) -> None:
        """One that is in the ring announces something else."""
        at, n = self._at[account.peer_id], len(self.accounts)
        self.accounts[at] = self._twice[at] = account
        if at < self._n_candidates:
            self._twice[n + at] = account


def doubted(ring: Ring) -> frozenset[PeerId]:
    """The members whose coordinate is not believed. All peers that see the same announcements agree."""
    spoken = {account.peer_id: _unpacked(account.testimonies) for account in ring.accounts}
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


class WitnessBook:
    """Keeps what all members announce of their round trips: which of them one peer is to measure, and which are not believed.

    Most of the time nobody has moved, and of a run of hundreds a few have: only what concerns those is computed again.
    """

    def __init__(self, me: PeerId) -> None:
        self.subjects: list[PeerId] = []
        """`Ring.subjects_of` this peer."""
        self.doubted: frozenset[PeerId] = frozenset()
        """See `doubted`."""
        self._me = me
        self._accounts: dict[PeerId, Account] = {}
        self._ring = Ring(())
        self._is_subject: dict[PeerId, bool] = {}  # of those that this peer is a candidate for
        self._spoken: dict[PeerId, Mapping[bytes, float]] = {}
        self._speakers: defaultdict[bytes, set[PeerId]] = defaultdict(set)  # by whom they speak about
        self._contradicting: defaultdict[bytes, set[PeerId]] = defaultdict(set)  # of them those that measured something else

    def hear(self, accounts: Iterable[Account]) -> None:
        """All announce this now, this peer included."""
        heard = {account.peer_id: account for account in accounts}
        if heard.keys() != self._accounts.keys():
            self._begin(heard)
        else:
            changed = [account for peer, account in heard.items() if account != self._accounts[peer]]
            if not changed:
                return
            moved = [a for a in changed if a.coordinate != self._accounts[a.peer_id].coordinate]
            for account in changed:
                self._accounts[account.peer_id] = account
                self._ring.renew(account)
            for account in changed:
                self._take_testimonies(account)
            for account in moved:
                self._look_at(account)
        self.subjects = [peer for peer, is_subject in self._is_subject.items() if is_subject][:MAX_TESTIMONIES]
        any_may_be_doubted = any(len(found) >= MIN_CONTRADICTING for found in self._contradicting.values())
        # As a rule none may, and then nobody's witnesses need to be found.
        self.doubted = doubted(self._ring) if any_may_be_doubted else frozenset()

    def _begin(self, accounts: dict[PeerId, Account]) -> None:
        """Others are members than before."""
        self._accounts = accounts
        self._ring = Ring(accounts.values())
        before = (self._ring.accounts[i].peer_id for i in self._ring.before(self._me))
        self._is_subject = {peer: self._ring.is_witness(self._me, peer) for peer in before}
        for book in (self._spoken, self._speakers, self._contradicting):
            book.clear()
        for account in accounts.values():
            self._take_testimonies(account)

    def _look_at(self, account: Account) -> None:
        """It claims to be elsewhere than before."""
        peer, mark = account.peer_id, _mark(account.peer_id)
        for subject in self._is_subject:
            if peer in (subject, self._me) or self._ring.is_candidate(peer, subject):
                self._is_subject[subject] = self._ring.is_witness(self._me, subject)
        for about in self._spoken[peer]:
            self._compare(peer, about)
        for speaker in self._speakers.get(mark, ()):
            self._compare(speaker, mark)

    def _take_testimonies(self, account: Account) -> None:
        """Note what it measured of others."""
        peer, now = account.peer_id, _unpacked(account.testimonies)
        before = self._spoken.get(peer, {})
        if now is before:
            return
        self._spoken[peer] = now
        for mark in before.keys() - now.keys():
            for book in (self._speakers, self._contradicting):
                book[mark].discard(peer)
                if not book[mark]:  # anybody may speak of peers that nobody knows, and of others each time
                    del book[mark]
        for mark, rtt_s in now.items():
            if rtt_s != before.get(mark):
                self._speakers[mark].add(peer)
                self._compare(peer, mark)

    def _compare(self, speaker: PeerId, mark: bytes) -> None:
        """What a member, witness or not, measured of the one with this mark, beside what that one claims."""
        account, here, rtt_s = self._ring.of_mark(mark), self._accounts[speaker].coordinate, self._spoken[speaker][mark]
        claimed = None if account is None else account.coordinate
        is_sure = here is not None and here.error < UNSETTLED and 0 < rtt_s <= MAX_RTT_S
        if claimed is not None and here is not None and is_sure and not _fits(claimed, Witness(here, rtt_s)):
            self._contradicting[mark].add(speaker)
        else:
            self._contradicting[mark].discard(speaker)


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
