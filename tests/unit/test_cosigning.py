"""Who may sign an update beside its owner, and what a member signs of one version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.cosigning import (
    BELIEVED_S,
    KEPT_S,
    MAX_KEPT,
    N_ASKED,
    N_BELIEVED,
    BelievedCosigners,
    SignedVersions,
    check_cosignature,
    cosigners,
    sign_cosignature,
)
from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.rendezvous import ownership, shard_key
from legion_p2p.errors import SignatureError

MEMBER = Identity(b"m" * 32)
OTHER = Identity(b"o" * 32)
KEY = shard_key("run", "", 0)
WEIGHTS = {PeerId(f"p{i}"): 1.0 for i in range(8)}


def test_the_standby_is_asked_first_and_the_owner_never() -> None:
    owners = ownership("run", "", 0, WEIGHTS)

    order = cosigners(KEY, owners, WEIGHTS)

    assert order[0] == owners.standby and owners.owner not in order
    assert len(order) == N_BELIEVED == len(set(order))


def test_an_owner_that_is_alone_has_nobody_to_ask() -> None:
    alone = {PeerId("a"): 1.0}

    assert cosigners(KEY, ownership("run", "", 0, alone), alone) == ()


@given(st.integers(0, 7))
def test_one_that_goes_changes_the_order_by_one_place_at_most(gone: int) -> None:
    """So what an owner asks by its view is believed by members whose view differs by one member."""
    owners = ownership("run", "", 0, WEIGHTS)
    rest = {peer: weight for peer, weight in WEIGHTS.items() if peer != f"p{gone}" or peer in (owners.owner, owners.standby)}

    before, after = cosigners(KEY, owners, WEIGHTS), cosigners(KEY, owners, rest)

    assert set(after[:N_ASKED]) <= set(before), "those that are asked by a member that knows of it"
    assert set(before[:N_ASKED]) - {PeerId(f"p{gone}")} <= set(after), "or does not"


def test_a_signature_on_an_update_is_not_one_of_its_owner() -> None:
    header = b"header"

    check_cosignature(MEMBER.peer_id, header, sign_cosignature(header, MEMBER))
    for member, signature in (
        (OTHER.peer_id, sign_cosignature(header, MEMBER)),
        (MEMBER.peer_id, sign_cosignature(b"another", MEMBER)),
        (MEMBER.peer_id, sign_header(header, MEMBER)),
    ):
        with pytest.raises(SignatureError):
            check_cosignature(member, header, signature)


def test_two_updates_of_one_version_are_not_signed() -> None:
    signed = SignedVersions()
    assert signed.may_sign(0, 7, 10.0) and signed.signature(0, b"one") is None

    signed.signed(0, 7, b"one", b"signature", 10.0)

    assert not signed.may_sign(0, 7, 11.0)
    assert signed.may_sign(0, 8, 11.0) and signed.may_sign(1, 7, 11.0)


def test_an_owner_whose_answer_was_lost_gets_it_again() -> None:
    signed = SignedVersions()
    signed.signed(0, 7, b"one", b"signature", 10.0)

    assert signed.signature(0, b"one") == b"signature" and signed.signature(0, b"other") is None


def test_one_that_lost_its_update_may_come_with_another_after_a_while() -> None:
    signed = SignedVersions()
    signed.signed(0, 7, b"one", b"signature", 10.0)

    assert signed.may_sign(0, 7, 10.0 + KEPT_S)


def test_what_is_remembered_is_bounded() -> None:
    signed = SignedVersions()
    for shard in range(MAX_KEPT + 10):
        signed.signed(shard, 1, b"one", b"signature", 0.0)

    assert signed.signature(0, b"one") is None and signed.signature(MAX_KEPT + 9, b"one") == b"signature"


def test_after_a_later_version_none_of_an_earlier_one_is_signed_because_what_was_signed_then_is_forgotten() -> None:
    signed = SignedVersions()
    signed.signed(0, 7, b"one", b"signature", 10.0)
    signed.signed(0, 8, b"next", b"signature", 11.0)

    assert not signed.may_sign(0, 7, 12.0) and signed.may_sign(0, 9, 12.0)


def test_one_that_signed_and_left_is_believed_for_a_while() -> None:
    believed, (a, b, c) = BelievedCosigners(), (PeerId(name) for name in "abc")
    assert believed.believed(0, (a, b), 0.0) == (a, b)

    assert set(believed.believed(0, (b, c), 10.0)) == {a, b, c}
    assert set(believed.believed(0, (b, c), 10.0 + BELIEVED_S - 1)) == {a, b, c}
    assert believed.believed(0, (b, c), 10.0 + BELIEVED_S) == (b, c)
    assert believed.believed(1, (c,), 10.0) == (c,), "each shard has an order of its own"
    assert believed.believed(0, (), 40.0) == (), "where nobody may sign, nobody needs to have signed"
