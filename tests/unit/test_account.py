"""What members and owners sign of a round, and what follows where an owner does not go on from what it had."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.account import (
    MAX_BREAKS,
    MAX_OWNERS,
    SETTLED_VERSIONS,
    Breaks,
    Continuity,
    CountVerdict,
    accuse,
    check_accusation,
    check_push,
    deviation,
    input_digest,
    sign_push,
)
from legion_p2p.core.evidence import EvidenceBook, KeptEvidence
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.wire import PushClaim, SignedHeader, UpdateAccount, UpdateHeader, decode_request, encode
from legion_p2p.errors import DecodeError, SignatureError

MEMBER, OTHER = Identity(b"m" * 32), Identity(b"n" * 32)
OWNER = PeerId("owner")
CLAIM = PushClaim("run", 3, MEMBER.peer_id, 7, 5, 100, "int8", b"p" * 32)


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [("run", "other"), ("shard", 4), ("version", 8), ("seq", 6), ("tokens", 1000), ("codec", "fp32"), ("payload", b"q" * 32)],
)
def test_a_member_signs_everything_that_its_push_counts_by(field: str, value: object) -> None:
    signature = sign_push(CLAIM, MEMBER)
    check_push(CLAIM, signature)

    changed = msgspec.structs.replace(CLAIM, **{field: value})

    with pytest.raises(SignatureError):
        check_push(changed, signature)
    assert input_digest(changed, signature) != input_digest(CLAIM, signature)


def test_nobody_pushes_in_the_name_of_another() -> None:
    with pytest.raises(SignatureError):
        check_push(CLAIM, sign_push(CLAIM, OTHER))
    assert input_digest(CLAIM, b"a" * 64) != input_digest(CLAIM, b"b" * 64), "an account binds the signature as well"


def test_an_accusation_is_its_accusers() -> None:
    accusation = accuse("run", SignedHeader(b"header", b"s" * 64), MEMBER)

    check_accusation(accusation)
    assert decode_request(encode(accusation)) == accusation
    for field, value in (("accuser", OTHER.peer_id), ("update", SignedHeader(b"another", b"s" * 64)), ("signature", b"")):
        with pytest.raises(SignatureError):
            check_accusation(msgspec.structs.replace(accusation, **{field: value}))


def test_an_accusation_proves_nothing_by_itself_and_what_was_computed_of_it_is_kept() -> None:
    header = UpdateHeader("run", 3, 8, digest_of("7"), digest_of("8"), OWNER, "int8", (), (), 1, 1)
    accusation = accuse("run", SignedHeader(encode(header), b"s" * 64), MEMBER)
    book, again = EvidenceBook(), EvidenceBook()

    with pytest.raises(DecodeError):
        book.add(accusation, 0.0)
    assert book.convict(OWNER, accusation, 0.0) and not book.convict(OWNER, accusation, 1.0)
    (kept,) = book.kept(0.0, 1000.0)
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=KeptEvidence), 0.0, 1001.0)

    assert again.excluded() == {OWNER}


def test_an_update_is_judged_beside_what_this_peers_codec_makes_of_the_same() -> None:
    assert deviation(0.0, 0.0, 1.0) is CountVerdict.RIGHT
    assert deviation(0.5, 0.5, 1.0) is CountVerdict.RIGHT
    assert deviation(0.502, 0.5, 1.0) is CountVerdict.UNCLEAR
    assert deviation(0.504, 0.5, 1.0) is CountVerdict.WRONG
    assert deviation(0.01, 0.0, 1.0) is CountVerdict.WRONG
    assert deviation(0.53, 0.5, 1.0, is_random=True) is CountVerdict.UNCLEAR
    assert deviation(0.57, 0.5, 1.0, is_random=True) is CountVerdict.WRONG
    assert deviation(0.0, 0.0, 0.0) is CountVerdict.RIGHT
    assert deviation(float("nan"), 0.5, 1.0) is not CountVerdict.RIGHT


@given(
    error=st.floats(0, 1e6), own=st.floats(0, 1e6), length=st.floats(1e-3, 1e6), off=st.floats(0.999, 1.001),
    is_random=st.booleans(),
)  # fmt: skip
def test_two_machines_never_say_right_and_wrong_of_one_update(
    error: float, own: float, length: float, off: float, is_random: bool
) -> None:
    """One that accuses would be convicted by the other. `off`: by how much what their codecs make differs."""
    findings = {deviation(error, own * by, length, is_random=is_random) for by in (1.0, off)}

    assert findings != {CountVerdict.RIGHT, CountVerdict.WRONG}


def account(before: str, after: str) -> UpdateAccount:
    return UpdateAccount((), b"p" * 32, digest_of(before), digest_of(after))


def run_of(n: int, continuity: Continuity, first: int = 1) -> int:
    """An honest owner makes n versions; the next version's number."""
    for version in range(first, first + n):
        assert not continuity.breaks(OWNER, version, account(f"{version - 1}", f"{version}"))
    return first + n


def test_an_owner_that_begins_with_something_else_than_it_had_is_seen() -> None:
    continuity = Continuity()
    version = run_of(SETTLED_VERSIONS, continuity)

    assert continuity.breaks(OWNER, version, account("made up", "x"))
    assert not continuity.breaks(OWNER, version + 1, account("x", "y"))


def test_what_an_owner_before_it_hands_over_is_no_break() -> None:
    continuity = Continuity()
    version = run_of(SETTLED_VERSIONS - 1, continuity)

    assert not continuity.breaks(OWNER, version, account("handed over", "x"))
    assert not continuity.breaks(PeerId("next"), version + 1, account("handed over", "y"))
    assert not continuity.breaks(OWNER, version + 2, account("handed over", "z"))


def test_versions_that_were_not_seen_say_nothing() -> None:
    continuity = Continuity()
    version = run_of(2 * SETTLED_VERSIONS, continuity)

    assert not continuity.breaks(OWNER, version + 1, account("made up", "x"))


def test_breaks_are_counted_for_each_owner_and_for_few_of_them() -> None:
    breaks = Breaks()

    assert [breaks.add(OWNER) for _ in range(2 * MAX_BREAKS)] == [False, False, True] * 2
    for i in range(2 * MAX_OWNERS):
        breaks.add(PeerId(f"{i}"))
    assert len(breaks._n) == MAX_OWNERS
