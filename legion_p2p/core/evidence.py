"""Evidence against owners that anybody can check again: two updates of one version, or a push that is left out.

An owner signs the header of each update that it publishes. Whoever has two headers of one run, shard and version, from the same
base and with different results, holds a proof: an honest owner combines a round once. So does a member with a receipt for a push
and the update that lacks it (`core.receipts`). The proof travels to all members. At each that checks it the owner owns nothing
from then on, its pushes weigh nothing, and it has no vote. Nobody votes on that.

An owner that lost its newest versions in a crash may sign a version again, with other bytes. So all of this ends after
`EXCLUDED_S`, and one version that a culprit made counts once.

Never happens: a peer is excluded by what it did not sign; evidence against keys that anybody can make ends the exclusion of
another peer; what has counted for its time counts again because another member still shows it.
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import Identity, PeerId, verify
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES, Equivocation, Evidence, Miscount, Omission, SignedHeader
from legion_p2p.core.receipts import check_omission
from legion_p2p.core.wire import Update, UpdateHeader, decode_header
from legion_p2p.errors import DecodeError, SignatureError

EXCLUDED_S = 24 * 3600.0
MAX_SHOWN = 64  # culprits whose evidence is kept to be shown to others, of at most half a megabyte each
MAX_CULPRITS = 10_000  # that are known: as many as members may be, because evidence against others is not looked at
MAX_SPENT = 4096  # acts that have counted for their time
MAX_OPENED = 64  # headers that were checked already: one comes again as evidence, by a relay, and to other peers of this process
DOMAIN = b"legion/update/1\0"


def sign_header(raw: bytes, identity: Identity) -> bytes:
    """The signature on the bytes of an update's header."""
    return identity.sign(DOMAIN + raw)


@lru_cache(maxsize=MAX_OPENED)
def open_header(raw: bytes, signature: bytes) -> UpdateHeader:
    """An update's header that its owner has signed. Raises: DecodeError; SignatureError."""
    header = decode_header(raw)
    verify(header.owner, DOMAIN + raw, signature)
    return header


def open_stored_header(raw: bytes, signature: bytes) -> UpdateHeader:
    """The same, of a stored update: before wire version 3 they were signed without DOMAIN.

    Raises: DecodeError; SignatureError.
    """
    try:
        return open_header(raw, signature)
    except SignatureError:
        header = decode_header(raw)
        verify(header.owner, raw, signature)
        return header


def equivocation(first: Update, second: Update) -> Equivocation | None:
    """The evidence that two updates are; None where they are none, or too long to be shown."""
    if max(len(first.header), len(second.header)) > MAX_SHOWN_HEADER_BYTES:
        return None
    shown = sorted((u.header, u.signature) for u in (first, second))
    evidence = Equivocation(decode_header(first.header).run, *(SignedHeader(*each) for each in shown))
    try:
        culprit(evidence)
    except DecodeError:
        return None
    return evidence


def culprit(evidence: Evidence) -> PeerId:
    """Against whom it speaks. Raises: DecodeError, SignatureError, where it proves nothing."""
    if isinstance(evidence, Miscount):
        raise DecodeError("an accusation that proves nothing by itself")
    if isinstance(evidence, Omission):
        return check_omission(evidence, open_header(evidence.update.header, evidence.update.signature))
    first, second = (open_header(each.header, each.signature) for each in (evidence.first, evidence.second))
    for header in (first, second):
        if header.run != evidence.run:
            raise DecodeError(f"evidence of run {evidence.run} about an update of run {header.run}")
    same = ("owner", "shard", "version", "base_digest")
    differing = [name for name in same if getattr(first, name) != getattr(second, name)]
    if differing:
        raise DecodeError(f"evidence of two updates that differ in {', '.join(differing)}")
    if first.digest == second.digest:
        raise DecodeError("evidence of two updates that lead to the same")
    return PeerId(first.owner)


def reason_of(evidence: Evidence, *, by_owner: bool = True) -> str:
    """What its culprit did, in words; `by_owner`: it is the owner, not an accuser."""
    if isinstance(evidence, Miscount):
        return "published an update that is not what it was made of" if by_owner else "accused an owner falsely of that"
    if isinstance(evidence, Omission):
        return "left a push out for which it had signed a receipt"
    return "signed two different updates of one version"


_Act = tuple[PeerId, int, int]
"""A culprit, and the shard and version that it did wrong."""


class KeptEvidence(msgspec.Struct, frozen=True):
    """A proof as it is kept on disk."""

    evidence: Evidence
    until_s: float
    """Wall time at which it no longer counts."""
    culprit: str = ""
    """Against whom it spoke when its inputs were at hand; of evidence that needs them."""


class EvidenceBook:
    """What is proven against members of one run."""

    def __init__(self) -> None:
        self._until: BoundedMap[PeerId, float] = BoundedMap(MAX_CULPRITS)
        self._shown: BoundedMap[PeerId, Evidence] = BoundedMap(MAX_SHOWN)
        self._act_of: BoundedMap[PeerId, _Act] = BoundedMap(MAX_CULPRITS)
        self._spent: BoundedMap[_Act, None] = BoundedMap(MAX_SPENT)
        self._excluded: frozenset[PeerId] = frozenset()
        self.revision = 0
        """Rises whenever a peer is excluded, or is no longer."""

    def add(self, evidence: Evidence, now: float) -> PeerId | None:
        """Take evidence in; against whom it is, where that is news.

        Raises: DecodeError, SignatureError, where it proves nothing.
        """
        return self._exclude(culprit(evidence), evidence, now, EXCLUDED_S)

    def convict(self, peer: PeerId, evidence: Miscount, now: float) -> bool:
        """This peer has computed what an accusation is about, and `peer` is wrong; whether that is news."""
        return self._exclude(peer, evidence, now, EXCLUDED_S) is not None

    def restore(self, kept: KeptEvidence, now: float, now_s: float) -> PeerId | None:
        """As `add`, of what this peer knew before it was started again. `now_s`: wall time."""
        left_s = min(kept.until_s - now_s, EXCLUDED_S)
        if left_s <= 0:
            return None
        peer = PeerId(kept.culprit) if isinstance(kept.evidence, Miscount) else culprit(kept.evidence)
        return self._exclude(peer, kept.evidence, now, left_s)

    def kept(self, now: float, now_s: float) -> tuple[KeptEvidence, ...]:
        """All of it, the oldest first."""
        return tuple(KeptEvidence(one, now_s + self._until[peer] - now, peer) for peer, one in self._shown.items())

    def _exclude(self, peer: PeerId, evidence: Evidence, now: float, lasts_s: float) -> PeerId | None:
        self.end(now)
        act = _act_of(peer, evidence)
        if peer in self._until or act in self._spent:
            return None
        self._until[peer] = now + lasts_s
        self._act_of[peer] = act
        self._shown[peer] = evidence
        self._changed()
        return peer

    def end(self, now: float) -> None:
        """Time has passed."""
        over = [peer for peer, until in self._until.items() if until <= now]
        for peer in over:
            del self._until[peer]
            self._spent[self._act_of.pop(peer)] = None
            self._shown.pop(peer, None)
        if over:
            self._changed()

    def excluded(self) -> frozenset[PeerId]:
        """Those that own nothing now, and whose pushes weigh nothing. The same object until that changes."""
        return self._excluded

    def proof_against(self, peer: PeerId, now: float, within_s: float) -> Evidence | None:
        """What proves by itself what `peer` did, if that was found out within the last `within_s` seconds; None where there is no
        such evidence, or it takes inputs to judge it."""
        evidence, until = self._shown.get(peer), self._until.get(peer, now)
        if evidence is None or isinstance(evidence, Miscount) or now + EXCLUDED_S - until > within_s:
            return None
        return evidence

    def newest(self, n: int) -> Sequence[Evidence]:
        """To show to a member that may not know it."""
        return list(self._shown.values())[-n:]

    def _changed(self) -> None:
        self._excluded = frozenset(self._until)
        self.revision += 1


def _act_of(peer: PeerId, evidence: Evidence) -> _Act:
    """What it is about. Two pieces of evidence about one act may differ in every byte."""
    shown = evidence.first if isinstance(evidence, Equivocation) else evidence.update
    header = decode_header(shown.header)
    return peer, header.shard, header.version
