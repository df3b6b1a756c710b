"""Evidence against owners that anybody can check again: two updates of one version, or a push that is left out.

An owner signs the header of each update that it publishes. Whoever has two headers of one run, shard and version, from the same
base and with different results, holds a proof: an honest owner combines a round once. So does a member with a receipt for a push
and the update that lacks it (`core.receipts`). The proof travels to all members, and at each that checks it the owner owns
nothing from then on. Nobody votes on that.

An owner that lost its newest versions in a crash may sign a version again, with other bytes. So it may go on training, and owns
again after `EXCLUDED_S`.

Never happens: a peer is excluded by what it did not sign; evidence of one owner displaces that of another without end.
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
MAX_CULPRITS = 64  # whose evidence is kept, of at most half a megabyte each; a key costs nothing, so more would help nobody
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


class _Proven(msgspec.Struct, frozen=True):
    evidence: Evidence
    until: float


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
        self._proven: BoundedMap[PeerId, _Proven] = BoundedMap(MAX_CULPRITS)
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
        return tuple(KeptEvidence(one.evidence, now_s + one.until - now, peer) for peer, one in self._proven.items())

    def _exclude(self, peer: PeerId, evidence: Evidence, now: float, lasts_s: float) -> PeerId | None:
        self.end(now)
        if peer in self._proven:
            return None
        self._proven[peer] = _Proven(evidence, now + lasts_s)
        self.revision += 1
        return peer

    def end(self, now: float) -> None:
        """Time has passed."""
        before = len(self._proven)
        self._proven.drop_while(lambda proven: proven.until <= now)
        self.revision += len(self._proven) != before

    def excluded(self) -> frozenset[PeerId]:
        """Those that own nothing now."""
        return frozenset(self._proven)

    def newest(self, n: int) -> Sequence[Evidence]:
        """To show to a member that may not know it."""
        return [proven.evidence for proven in self._proven.values()][-n:]
