"""What a member says of itself: signed, bounded, ordered."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import announcement as announcement_module
from legion_p2p.core.announcement import (
    MAX_ANNOUNCEMENT_BYTES,
    MAX_MARKS_SHOWN,
    MAX_TROUBLE_CHARS,
    NAMES_ON_WIRE,
    Announcement,
    Mark,
    mark_of,
    open_signed,
    pack_marks,
    peer_of,
    sign,
    unpack_marks,
)
from legion_p2p.core.claims import MAX_NAMED
from legion_p2p.core.identity import Identity
from legion_p2p.core.placement import MAX_WEIGHT
from legion_p2p.errors import DecodeError, SelfCheckError, SignatureError

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
FULL = Announcement(
    peer_id=ALICE.peer_id,
    run="run",
    incarnation=3,
    seq=7,
    addresses=("/ip4/10.0.0.1/tcp/4710",),
    region="home",
    weight=2.5,
    ready=True,
    training=True,
    step=10,
    tokens=1000,
    tokens_per_s=99.5,
    step_s=0.1,
    loss=2.25,
    sent_bytes=5,
    received_bytes=6,
    marks=pack_marks([Mark(1, 2)]),
    epoch=4,
    chunks=b"\x01",
)
counts = st.integers(0, 1 << 62)


def signed_as_is(body: bytes, identity: Identity = ALICE) -> bytes:
    """What a stranger may sign: anything."""
    return msgpack.packb({"body": body, "signature": identity.sign(announcement_module._domain(body))})


def fields_of(announcement: Announcement) -> dict:
    """By name; marks and chunks stay bytes."""
    names = {letter: name for name, letter in NAMES_ON_WIRE.items()}
    return {names[letter]: value for letter, value in msgpack.unpackb(msgpack.unpackb(sign(announcement, ALICE))["body"]).items()}


def packed(fields: dict) -> bytes:
    """As a body; what has no letter stays as it is."""
    return msgpack.packb({NAMES_ON_WIRE.get(name, name): value for name, value in fields.items()})


def test_it_opens_as_it_was_signed() -> None:
    assert open_signed(sign(FULL, ALICE)) == FULL
    assert peer_of(FULL) == ALICE.peer_id and FULL.order == (3, 7)


def test_it_is_plain_messagepack() -> None:
    outer = msgpack.unpackb(sign(FULL, ALICE))
    inner = fields_of(FULL)

    assert set(outer) == {"body", "signature"} and len(outer["signature"]) == 64
    assert inner["peer_id"] == ALICE.peer_id and inner["loss"] == 2.25 and inner["addresses"] == ["/ip4/10.0.0.1/tcp/4710"]


def test_one_that_messagepack_made_is_accepted() -> None:
    body = packed({"peer_id": ALICE.peer_id, "run": "run", "seq": 5, "weight": 2, "a field of a later version": [1, 2]})

    assert open_signed(signed_as_is(body)) == Announcement(ALICE.peer_id, "run", seq=5, weight=2.0)


def test_nobody_can_announce_somebody_else() -> None:
    with pytest.raises(SignatureError, match=ALICE.peer_id):
        open_signed(sign(FULL, BOB))


def test_a_single_changed_byte_is_refused() -> None:
    signed = sign(FULL, ALICE)

    for i in range(len(signed)):
        changed = bytearray(signed)
        changed[i] ^= 1
        with pytest.raises(DecodeError):
            open_signed(bytes(changed))


def test_a_signature_on_the_bare_bytes_is_not_one_on_an_announcement() -> None:
    body = packed({"peer_id": ALICE.peer_id, "run": "run"})

    with pytest.raises(SignatureError):
        open_signed(msgpack.packb({"body": body, "signature": ALICE.sign(body)}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_id", "x" * 65),
        ("peer_id", ALICE.peer_id + " "),
        ("peer_id", ""),
        ("run", "x" * 101),
        ("incarnation", -1),
        ("incarnation", (1 << 62) + 1),
        ("seq", -1),
        ("seq", 1.5),
        ("addresses", ["a"] * 17),
        ("addresses", ["a" * 201]),
        ("addresses", [1]),
        ("region", "x" * 65),
        ("weight", -1.0),
        ("weight", 1.1e9),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("tokens_per_s", float("nan")),
        ("step_s", -0.1),
        ("loss", "low"),
        ("ready", 1),
        ("marks", b"x" * (8 * MAX_MARKS_SHOWN + 8)),
        ("marks_digest", b"x" * 17),
        ("version", 1 << 32),
        ("marks", b"seven b"),
        ("marks", "text"),
        ("chunks", b"x" * 1025),
        ("epoch", -1),
        ("stalled", ["p"] * (MAX_NAMED + 1)),
        ("avoided", ["p"] * (MAX_NAMED + 1)),
        ("stalled", ["p" * 65]),
        ("trouble", "x" * (MAX_TROUBLE_CHARS + 1)),
        ("reach", "everywhere"),
        ("role", "queen"),
        ("circuits", -1),
    ],
)
def test_what_is_out_of_bounds_is_refused_though_it_is_signed(field: str, value: object) -> None:
    with pytest.raises(DecodeError):
        open_signed(signed_as_is(packed({**fields_of(FULL), field: value})))


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(DecodeError):
        open_signed(signed_as_is(msgpack.packb({"a": ALICE.peer_id, "b": b"\xff\xfe"}, use_bin_type=False)))


def test_nesting_without_end_is_refused() -> None:
    deep = b"\x83\xa1a" + msgpack.packb(ALICE.peer_id) + b"\xa1b\xa1r\xa1x" + b"\x91" * 40_000 + b"\xc0"

    with pytest.raises(DecodeError):
        open_signed(signed_as_is(deep))


def test_the_largest_fits_and_a_larger_one_is_refused_before_anything_is_read() -> None:
    largest = msgspec.structs.replace(
        FULL, marks=bytes(8 * MAX_MARKS_SHOWN), chunks=bytes(1024), addresses=("a" * 200,) * 16, region="r" * 64
    )

    assert open_signed(sign(largest, ALICE)) == largest
    with pytest.raises(DecodeError, match="at most"):
        open_signed(b"x" * (MAX_ANNOUNCEMENT_BYTES + 201))


@given(st.binary(max_size=400))
def test_random_bytes_never_raise_anything_else_than_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        open_signed(data)


@given(st.binary(max_size=400))
def test_random_bytes_that_are_signed_never_raise_anything_else_either(body: bytes) -> None:
    with pytest.raises(DecodeError):
        open_signed(signed_as_is(body))


@given(
    st.builds(
        Announcement,
        peer_id=st.just(ALICE.peer_id),
        run=st.text(max_size=100),
        incarnation=counts,
        seq=counts,
        addresses=st.lists(st.text(max_size=200), max_size=16).map(tuple),
        region=st.text(max_size=64),
        weight=st.floats(0, MAX_WEIGHT),
        ready=st.booleans(),
        step=counts,
        loss=st.none() | st.floats(allow_nan=False),
        marks=st.lists(st.binary(min_size=8, max_size=8), max_size=9).map(b"".join),
        chunks=st.binary(max_size=1024),
    )
)
def test_whatever_is_within_bounds_comes_back_as_it_was(announcement: Announcement) -> None:
    assert open_signed(sign(announcement, ALICE)) == announcement


@given(st.lists(st.builds(Mark, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)), max_size=20))
def test_marks_come_back_as_they_were_packed(marks: list[Mark]) -> None:
    packed = pack_marks(marks)

    assert len(packed) == 8 * len(marks)
    assert unpack_marks(packed) == tuple(marks)


def test_a_mark_is_version_and_the_start_of_the_digest() -> None:
    assert pack_marks([mark_of(258, b"\x01\x02\x03\x04" + b"x" * 28)]) == b"\x00\x00\x01\x02\x01\x02\x03\x04"


def test_a_version_beyond_the_last_does_not_stop_whoever_announces_it() -> None:
    assert unpack_marks(pack_marks([Mark(1 << 40, 7)])) == (Mark(0xFFFFFFFF, 7),)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"tokens": (1 << 62) + 1},
        {"step_s": float("inf")},
        {"step_s": float("nan")},
        {"tokens_per_s": 1e16},
        {"loss": "0.5"},
        {"region": "r" * 65},
        {"addresses": ("/ip4/" + "1" * 300,)},
        {"chunks": b"c" * 1025},
    ],
)
def test_one_that_others_would_refuse_is_not_signed(changes: dict) -> None:
    """They would count it as misbehaviour, and the peer would vanish for them without hearing why."""
    with pytest.raises(SelfCheckError, match="would be refused by the others"):
        sign(msgspec.structs.replace(FULL, **changes), ALICE)


@pytest.mark.parametrize(("said", "taken"), [(0.0, 0.0), (1.0, 1.0), (MAX_WEIGHT, MAX_WEIGHT), (1e9, MAX_WEIGHT)])
def test_no_member_weighs_more_than_the_strongest_connection_whatever_it_says(said: float, taken: float) -> None:
    signed = sign(Announcement(ALICE.peer_id, "run", weight=said), ALICE)

    assert open_signed(signed).weight == taken


def test_every_field_has_a_letter_of_its_own() -> None:
    assert NAMES_ON_WIRE.keys() == set(Announcement.__struct_fields__)
    assert len(set(NAMES_ON_WIRE.values())) == len(NAMES_ON_WIRE)
