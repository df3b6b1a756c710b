"""Who may take part in a run that does not admit everybody."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import admission
from legion_p2p.core.admission import (
    FOREVER,
    MAX_REVOCATIONS_SHOWN,
    MAX_TOKEN_BYTES,
    Admission,
    Permit,
    make_revocation,
    make_token,
    open_revocation,
    open_token,
)
from legion_p2p.core.identity import Identity
from legion_p2p.errors import DecodeError, SignatureError, UsageError

RUN = "bafkrei" + "a" * 52
FOUNDER, ADMIN, GUEST, STRANGER = (Identity(letter * 32) for letter in (b"f", b"a", b"g", b"s"))
NOW, SOON, LATER = 1000.0, 2000, 3000


def by_token() -> Admission:
    return Admission(RUN, "token", FOUNDER.peer_id, [ADMIN.peer_id])


def test_an_open_run_admits_everybody() -> None:
    assert Admission(RUN, "open", FOUNDER.peer_id).refusal(STRANGER.peer_id, b"", NOW) == ""


def test_a_list_admits_whom_it_names_and_the_creator() -> None:
    listed = Admission(RUN, "allow-list", FOUNDER.peer_id, admitted=[GUEST.peer_id])

    assert [listed.refusal(i.peer_id, b"", NOW) for i in (FOUNDER, GUEST)] == ["", ""]
    assert "allow-list" in listed.refusal(STRANGER.peer_id, make_token(FOUNDER, RUN, STRANGER.peer_id, SOON), NOW)


@pytest.mark.parametrize("signer", [FOUNDER, ADMIN])
def test_a_token_of_the_creator_or_an_admin_admits_until_it_expires(signer: Identity) -> None:
    token = make_token(signer, RUN, GUEST.peer_id, SOON)

    assert by_token().refusal(GUEST.peer_id, token, SOON - 1) == ""
    assert "expired" in by_token().refusal(GUEST.peer_id, token, SOON)


def test_who_signs_tokens_needs_none() -> None:
    assert [by_token().refusal(i.peer_id, b"", NOW) for i in (FOUNDER, ADMIN)] == ["", ""]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (b"", "none was shown"),
        (b"garbage", "is none"),
        (make_token(STRANGER, RUN, STRANGER.peer_id, SOON), "who may not"),
        (make_token(FOUNDER, RUN, GUEST.peer_id, SOON), "another run or peer"),
        (make_token(FOUNDER, RUN[:-1] + "b", STRANGER.peer_id, SOON), "another run or peer"),
        (make_revocation(FOUNDER, RUN, STRANGER.peer_id, SOON), "is none"),
    ],
)
def test_no_other_token_admits(token: bytes, reason: str) -> None:
    assert reason in by_token().refusal(STRANGER.peer_id, token, NOW)


def test_a_revoked_token_admits_nobody_and_one_that_ends_later_does() -> None:
    gate = by_token()
    old, new = (make_token(FOUNDER, RUN, GUEST.peer_id, until) for until in (SOON, LATER))

    news = [gate.revoke(make_revocation(ADMIN, RUN, GUEST.peer_id, SOON), NOW) for _ in range(2)]

    assert news == [True, False]
    assert "revoked" in gate.refusal(GUEST.peer_id, old, NOW)
    assert gate.refusal(GUEST.peer_id, new, NOW) == ""
    gate.revoke(make_revocation(FOUNDER, RUN, GUEST.peer_id), NOW)
    assert "revoked" in gate.refusal(GUEST.peer_id, new, NOW)


@pytest.mark.parametrize(
    "revocation",
    [
        make_revocation(STRANGER, RUN, GUEST.peer_id),
        make_revocation(FOUNDER, "another", GUEST.peer_id),
        make_token(FOUNDER, RUN, GUEST.peer_id, SOON),
        b"",
    ],
)
def test_only_who_may_sign_revokes(revocation: bytes) -> None:
    gate = by_token()

    with pytest.raises(DecodeError):
        gate.revoke(revocation, NOW)

    assert gate.refusal(GUEST.peer_id, make_token(FOUNDER, RUN, GUEST.peer_id, SOON), NOW) == ""


def test_a_revocation_is_passed_on_as_long_as_it_matters_and_all_of_many_come_round() -> None:
    gate = by_token()
    proofs = {make_revocation(FOUNDER, RUN, Identity(bytes([i]) * 32).peer_id, SOON + i) for i in range(20)}
    for proof in proofs:
        gate.revoke(proof, NOW)

    shown = [gate.revocations(NOW, turn) for turn in range(20)]

    assert {len(some) for some in shown} == {MAX_REVOCATIONS_SHOWN}
    assert {proof for some in shown for proof in some} == proofs
    assert gate.revocations(SOON + 19, 0) == ()
    assert not gate.revoke(make_revocation(FOUNDER, RUN, GUEST.peer_id, SOON), SOON + 1), "of no use any more"


def test_revocations_are_bounded_and_those_of_expired_tokens_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_REVOKED", 3)
    gate = by_token()
    peers = [Identity(bytes([i]) * 32).peer_id for i in range(5)]
    for i, peer in enumerate(peers[:3]):
        gate.revoke(make_revocation(FOUNDER, RUN, peer, LATER if i == 0 else SOON), NOW)

    gate.revoke(make_revocation(FOUNDER, RUN, peers[3], LATER), SOON + 1)

    revoked = [p for p in peers if "revoked" in gate.refusal(p, make_token(FOUNDER, RUN, p, LATER), NOW)]
    assert revoked == [peers[0], peers[3]]
    for peer in peers:
        gate.revoke(make_revocation(FOUNDER, RUN, peer, LATER + 1), NOW)
    assert len(gate.revocations(NOW, 0)) == 3


def test_the_user_s_ban_is_above_all() -> None:
    for gate in (by_token(), Admission(RUN, "open", FOUNDER.peer_id)):
        gate.banned = frozenset({FOUNDER.peer_id})

        assert "banned" in gate.refusal(FOUNDER.peer_id, b"", NOW)


@pytest.mark.parametrize(("peer", "until"), [("nobody", SOON), (GUEST.peer_id, 0), (GUEST.peer_id, FOREVER + 1)])
def test_no_token_is_made_that_nobody_would_take(peer: str, until: int) -> None:
    with pytest.raises(UsageError):
        make_token(FOUNDER, RUN, peer, until)


def test_a_token_is_small_and_a_larger_one_is_refused_unread() -> None:
    token = make_token(FOUNDER, RUN, GUEST.peer_id, SOON)

    assert len(token) < 320 < MAX_TOKEN_BYTES
    with pytest.raises(DecodeError, match=f"at most {MAX_TOKEN_BYTES}"):
        open_token(token + b"\0" * MAX_TOKEN_BYTES)


def test_a_signature_on_one_is_none_on_the_other() -> None:
    token, revocation = make_token(FOUNDER, RUN, GUEST.peer_id, SOON), make_revocation(FOUNDER, RUN, GUEST.peer_id, SOON)

    assert open_token(token) == open_revocation(revocation) == Permit(RUN, GUEST.peer_id, SOON, FOUNDER.peer_id)
    with pytest.raises(SignatureError):
        open_revocation(token)
    with pytest.raises(SignatureError):
        open_token(revocation)


def test_every_changed_bit_is_noticed() -> None:
    token = make_token(FOUNDER, RUN, GUEST.peer_id, SOON)

    for i in range(len(token)):
        changed = bytearray(token)
        changed[i] ^= 1
        assert by_token().refusal(GUEST.peer_id, bytes(changed), NOW) != ""


@given(st.binary(max_size=600))
def test_random_bytes_raise_nothing_but_decode_errors(data: bytes) -> None:
    for read in (open_token, open_revocation):
        with pytest.raises(DecodeError):
            read(data)
    assert by_token().refusal(GUEST.peer_id, data, NOW) != ""


def test_a_body_with_more_in_it_is_refused() -> None:
    body = msgspec.msgpack.encode({**msgspec.structs.asdict(Permit(RUN, GUEST.peer_id, SOON, FOUNDER.peer_id)), "more": 1})

    with pytest.raises(DecodeError, match="more"):
        open_token(msgspec.msgpack.encode({"body": body, "signature": b"x" * 64}))
