"""What proves that an owner left out a push that it had taken, and what does not."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.evidence import EvidenceBook, culprit, sign_header
from legion_p2p.core.identity import Identity
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES
from legion_p2p.core.messages.shards import MAX_FAILED_NAMED
from legion_p2p.core.receipts import omission, receipt_in, sign_receipt
from legion_p2p.core.round import LATE
from legion_p2p.core.wire import (
    Failure,
    Inclusion,
    Omission,
    Pushed,
    Receipt,
    Update,
    UpdateHeader,
    decode_request,
    encode,
)
from legion_p2p.errors import DecodeError, SignatureError

OWNER, MEMBER = Identity(b"o" * 32), Identity(b"m" * 32)
BEFORE, AFTER = (hashlib.sha256(text).digest() for text in (b"7", b"8"))
RECEIPT = Receipt("run", 3, OWNER.peer_id, MEMBER.peer_id, 5, 7, BEFORE)
SIGNATURE = sign_receipt(RECEIPT, OWNER)
WITHOUT = UpdateHeader("run", 3, 8, BEFORE, AFTER, OWNER.peer_id, "int8", (), (), 1, 1)


def shown(header: UpdateHeader, by: Identity = OWNER) -> Update:
    raw = encode(header)
    return Update(raw, sign_header(raw, by), b"")


def found(header: UpdateHeader, receipt: Receipt = RECEIPT) -> Omission | None:
    return omission(receipt, sign_receipt(receipt, OWNER), shown(header), header)


def test_an_update_without_a_push_that_its_owner_had_taken_is_evidence() -> None:
    evidence = found(WITHOUT)

    assert evidence is not None and culprit(evidence) == OWNER.peer_id
    assert decode_request(encode(evidence)) == evidence
    book = EvidenceBook()
    assert book.add(evidence, 0.0) == OWNER.peer_id and book.excluded() == {OWNER.peer_id}


def test_a_push_with_a_receipt_was_not_late() -> None:
    assert found(msgspec.structs.replace(WITHOUT, failed=(Failure(MEMBER.peer_id, LATE),))) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"included": (Inclusion(MEMBER.peer_id, 5),)},
        {"included": (Inclusion(MEMBER.peer_id, 6),)},
        {"failed": (Failure(MEMBER.peer_id, "value carries NaN or infinity"),)},
        {"failed": tuple(Failure(f"peer {i}", "bad") for i in range(MAX_FAILED_NAMED))},
        {"version": 9},
        {"base_digest": AFTER},
        {"shard": 4},
        {"run": "another"},
    ],
    ids=["in", "a later one in", "a reason", "no room for it", "a later version", "another base", "another shard", "another run"],
)
def test_what_an_honest_owner_may_publish_is_no_evidence(fields: dict[str, object]) -> None:
    header = msgspec.structs.replace(WITHOUT, **fields)

    assert found(header) is None
    with pytest.raises(DecodeError):
        culprit(_shown(header))


def _shown(header: UpdateHeader) -> Omission:
    evidence = found(WITHOUT)
    assert evidence is not None
    update = shown(header)
    signed = msgspec.structs.replace(evidence.update, header=update.header, signature=update.signature)
    return msgspec.structs.replace(evidence, update=signed)


def test_a_header_that_is_too_long_to_be_shown_is_no_evidence() -> None:
    many = tuple(Inclusion(f"{i:050}", 1) for i in range(MAX_SHOWN_HEADER_BYTES // 50))

    assert found(msgspec.structs.replace(WITHOUT, included=many)) is None


def test_nobody_can_make_up_a_receipt() -> None:
    evidence = found(WITHOUT)
    assert evidence is not None

    forged = msgspec.structs.replace(evidence, signature=sign_receipt(RECEIPT, MEMBER))
    of_another_push = msgspec.structs.replace(evidence, receipt=msgspec.structs.replace(RECEIPT, seq=4))
    header = WITHOUT
    of_another_owner = msgspec.structs.replace(evidence, update=_shown(header).update)
    mis_signed = msgspec.structs.replace(
        of_another_owner, update=msgspec.structs.replace(evidence.update, signature=shown(header, MEMBER).signature)
    )

    for made_up in (forged, of_another_push, mis_signed):
        with pytest.raises(SignatureError):
            EvidenceBook().add(made_up, 0.0)


def test_a_member_takes_a_receipt_for_exactly_what_it_pushed() -> None:
    asked = msgspec.structs.replace(RECEIPT, version=0, digest=b"")

    assert receipt_in(Pushed(7, False, BEFORE, SIGNATURE), asked) == RECEIPT
    for reply in (Pushed(8, False, BEFORE, SIGNATURE), Pushed(7, False, AFTER, SIGNATURE), Pushed(7, False, BEFORE, b"")):
        with pytest.raises(SignatureError):
            receipt_in(reply, asked)


@given(seq=st.integers(0, 20), included=st.none() | st.integers(0, 20), named=st.booleans())
def test_evidence_speaks_exactly_where_neither_the_push_nor_a_reason_is_there(
    seq: int, included: int | None, named: bool
) -> None:
    receipt = msgspec.structs.replace(RECEIPT, seq=seq)
    header = msgspec.structs.replace(
        WITHOUT,
        included=() if included is None else (Inclusion(MEMBER.peer_id, included),),
        failed=(Failure(MEMBER.peer_id, "unusable"),) * named,
    )

    assert (found(header, receipt) is not None) == (not named and (included is None or included < seq))
