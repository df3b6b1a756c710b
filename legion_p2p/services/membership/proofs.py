"""Evidence against members: core/evidence.py with the clocks of this machine."""

from collections.abc import Callable

import trio

from legion_p2p.core.evidence import EvidenceBook, KeptEvidence
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.evidence import Evidence, Miscount


class Proofs:
    """Takes evidence in, and keeps what is proven."""

    def __init__(self, wall_time: Callable[[], float], note_change: Callable[[], None]) -> None:
        """`note_change` is called whenever a member is excluded."""
        self.book = EvidenceBook()
        self._wall_time = wall_time
        self._note_change = note_change

    def prove(self, evidence: Evidence) -> PeerId | None:
        """Take evidence in; against whom it is, where that is news.

        Raises: DecodeError, SignatureError, where it proves nothing.
        """
        culprit = self.book.add(evidence, trio.current_time())
        if culprit is not None:
            self._note_change()
        return culprit

    def convict(self, peer: PeerId, evidence: Miscount) -> bool:
        """See `EvidenceBook.convict`."""
        is_news = self.book.convict(peer, evidence, trio.current_time())
        if is_news:
            self._note_change()
        return is_news

    def restore(self, kept: KeptEvidence) -> None:
        """Take in what this peer knew before it was started again. Raises: DecodeError, where it proves nothing."""
        if self.book.restore(kept, trio.current_time(), self._wall_time()) is not None:
            self._note_change()

    def kept(self) -> tuple[KeptEvidence, ...]:
        """What is proven now, to be kept on disk."""
        return self.book.kept(trio.current_time(), self._wall_time())
