"""What is proven against owners outlives the process of the peer that knows it."""

from pathlib import Path

import pytest

from legion_p2p.core.evidence import EXCLUDED_S, MAX_SHOWN, EvidenceBook, KeptEvidence
from legion_p2p.core.wire import Omission
from legion_p2p.errors import StoreError
from legion_p2p.store.evidence_file import MAX_FILE_BYTES, EvidenceFile
from tests.unit.test_receipts import OWNER, WITHOUT, found

NOW_S = 1.7e9


def proof() -> Omission:
    evidence = found(WITHOUT)
    assert evidence is not None
    return evidence


def test_what_is_proven_is_believed_after_a_restart_for_the_rest_of_its_time(tmp_path: Path) -> None:
    book, file = EvidenceBook(), EvidenceFile.beside(tmp_path / "peer.key")
    book.add(proof(), 50.0)

    file.save(book.kept(60.0, NOW_S))
    again = EvidenceBook()
    (kept,) = file.load()
    again.restore(kept, 5.0, NOW_S + 100)

    assert file.path == tmp_path / "peer.evidence" and kept.until_s == NOW_S + EXCLUDED_S - 10
    assert again.excluded() == {OWNER.peer_id}
    again.end(5.0 + EXCLUDED_S - 111)
    assert again.excluded() == {OWNER.peer_id}
    again.end(5.0 + EXCLUDED_S - 109)
    assert not again.excluded()


def test_what_is_over_or_from_a_clock_far_ahead_counts_for_a_day_at_most() -> None:
    book = EvidenceBook()

    book.restore(KeptEvidence(proof(), NOW_S), 0.0, NOW_S)
    assert not book.excluded()
    book.restore(KeptEvidence(proof(), NOW_S + 100 * EXCLUDED_S), 0.0, NOW_S)
    book.end(EXCLUDED_S)
    assert not book.excluded()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x91\x80"])
def test_a_file_that_is_no_list_of_evidence_is_named(tmp_path: Path, content: bytes) -> None:
    file = EvidenceFile.beside(tmp_path / "peer.key")
    file.path.write_bytes(content)

    with pytest.raises(StoreError, match=r"peer\.evidence"):
        file.load()


def test_no_more_is_read_than_is_ever_written(tmp_path: Path) -> None:
    file = EvidenceFile.beside(tmp_path / "peer.key")
    assert file.load() == ()

    file.save([KeptEvidence(proof(), NOW_S)] * (MAX_SHOWN + 1))
    assert len(file.load()) == MAX_SHOWN
    with file.path.open("wb") as out:
        out.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(StoreError):
        file.load()
