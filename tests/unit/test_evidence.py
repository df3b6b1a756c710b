"""What proves that an owner told two things, and what does not."""

import hashlib

import msgspec
import pytest

from legion_p2p.core import evidence as evidence_module
from legion_p2p.core.account import accuse
from legion_p2p.core.evidence import EXCLUDED_S, EvidenceBook, culprit, equivocation, sign_header
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES, Equivocation, SignedHeader
from legion_p2p.core.messages.shards import Failure
from legion_p2p.core.wire import Update, UpdateHeader, decode_request, encode
from legion_p2p.errors import DecodeError, SignatureError

OWNER = Identity(b"o" * 32)


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def header(**fields: object) -> UpdateHeader:
    made = UpdateHeader("run", 3, 8, digest_of("7"), digest_of("8"), OWNER.peer_id, "int8", (), (), 1, 1)
    return msgspec.structs.replace(made, **fields)


def shown(made: UpdateHeader, by: Identity = OWNER) -> SignedHeader:
    raw = encode(made)
    return SignedHeader(raw, sign_header(raw, by))


def update_of(made: UpdateHeader, by: Identity = OWNER) -> Update:
    each = shown(made, by)
    return Update(each.header, each.signature, b"payload")


ONE, OTHER = header(), header(digest=digest_of("another 8"))


def test_two_updates_of_one_version_from_one_base_are_evidence_against_their_owner() -> None:
    evidence = equivocation(update_of(ONE), update_of(OTHER))

    assert evidence is not None and culprit(evidence) == OWNER.peer_id
    assert equivocation(update_of(OTHER), update_of(ONE)) == evidence, "in whichever order they were found"
    assert decode_request(encode(evidence)) == evidence


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": ONE.digest},
        {"version": 9},
        {"shard": 4},
        {"base_digest": digest_of("another 7")},
        {"digest": ONE.digest, "tokens": 2},
    ],
    ids=["the same", "another version", "another shard", "another base", "the same result"],
)
def test_what_an_honest_owner_may_sign_is_no_evidence(fields: dict[str, object]) -> None:
    second = msgspec.structs.replace(OTHER, **fields)

    assert equivocation(update_of(ONE), update_of(second)) is None
    with pytest.raises(DecodeError):
        EvidenceBook().add(Equivocation("run", shown(ONE), shown(second)), 0.0)


def test_updates_of_two_owners_are_no_evidence() -> None:
    other = Identity(b"p" * 32)
    second = msgspec.structs.replace(OTHER, owner=other.peer_id)

    assert equivocation(update_of(ONE), update_of(second, other)) is None


def test_nobody_can_make_up_evidence_against_another() -> None:
    liar = Identity(b"l" * 32)
    book = EvidenceBook()

    for first, second in ((shown(ONE, liar), shown(OTHER, liar)), (shown(ONE), shown(OTHER, liar))):
        with pytest.raises(SignatureError):
            book.add(Equivocation("run", first, second), 0.0)
    bare = [SignedHeader(encode(made), OWNER.sign(encode(made))) for made in (ONE, OTHER)]
    with pytest.raises(SignatureError):
        book.add(Equivocation("run", *bare), 0.0)
    with pytest.raises(DecodeError):
        book.add(Equivocation("another run", shown(ONE), shown(OTHER)), 0.0)
    with pytest.raises(DecodeError):
        book.add(Equivocation("run", SignedHeader(b"\xc1", b""), shown(OTHER)), 0.0)
    assert not book.excluded()


def test_a_header_that_is_too_long_to_be_shown_is_no_evidence() -> None:
    failed = tuple(Failure(PeerId("p" * 52), "r" * 200) for _ in range(1200))
    long = msgspec.structs.replace(OTHER, failed=failed)
    assert len(encode(long)) > MAX_SHOWN_HEADER_BYTES

    assert equivocation(update_of(ONE), update_of(long)) is None
    with pytest.raises(DecodeError):
        decode_request(encode(Equivocation("run", shown(ONE), shown(long))))


def test_an_owner_is_excluded_once_and_for_a_day() -> None:
    book = EvidenceBook()
    evidence = Equivocation("run", shown(ONE), shown(OTHER))

    assert book.add(evidence, 0.0) == OWNER.peer_id and book.excluded() == {OWNER.peer_id}
    assert book.add(evidence, EXCLUDED_S / 2) is None, "it is known"
    before = book.revision
    book.end(EXCLUDED_S)
    assert not book.excluded() and book.revision > before


def against(owner: Identity, **fields: object) -> Equivocation:
    """Two updates that this owner signed."""
    made = [msgspec.structs.replace(each, owner=owner.peer_id, **fields) for each in (ONE, OTHER)]
    return Equivocation("run", *(shown(each, owner) for each in made))


def test_evidence_against_any_number_of_keys_takes_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "MAX_CULPRITS", 40)
    monkeypatch.setattr(evidence_module, "MAX_SHOWN", 16)
    book = EvidenceBook()
    for i in range(60):
        book.add(against(Identity(i.to_bytes(32, "big"))), float(i))

    assert len(book.excluded()) == 40 and len(book.newest(8)) == 8
    assert len(book.kept(0.0, 0.0)) == 16


def test_evidence_against_a_hundred_made_up_keys_does_not_end_the_exclusion_of_an_owner() -> None:
    book = EvidenceBook()
    book.add(against(OWNER), 0.0)
    for i in range(100):
        book.add(against(Identity(i.to_bytes(32, "big"))), float(i))

    assert OWNER.peer_id in book.excluded()


def test_what_has_counted_for_a_day_does_not_count_again_in_whatever_bytes_it_is_shown() -> None:
    book = EvidenceBook()
    book.add(against(OWNER), 0.0)
    book.end(EXCLUDED_S)
    swapped = Equivocation("run", shown(OTHER), shown(ONE))

    assert book.add(against(OWNER), EXCLUDED_S) is None and book.add(swapped, EXCLUDED_S) is None
    assert book.add(against(OWNER, version=9), EXCLUDED_S) == OWNER.peer_id, "another version is another act"


def test_only_what_proves_by_itself_and_is_young_is_held_against_an_owner_that_does_not_go_by_it() -> None:
    book, owner = EvidenceBook(), PeerId(OWNER.peer_id)
    book.add(against(OWNER), 0.0)

    assert book.proof_against(owner, 10.0, 10.0) == against(OWNER)
    assert book.proof_against(owner, 10.1, 10.0) is None
    assert book.proof_against(PeerId("another"), 0.0, 10.0) is None
    accuser = Identity(b"a" * 32)
    judged = EvidenceBook()
    judged.convict(owner, accuse("run", shown(ONE), accuser), 0.0)
    assert judged.excluded() == {owner} and judged.proof_against(owner, 0.0, 10.0) is None
