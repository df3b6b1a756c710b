"""Content ids and DAG-CBOR: what the specifications say, one way to write everything, and nothing else is read."""

import base64
import contextlib
import hashlib
import math

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import DAG_CBOR, RAW, Cid
from legion_p2p.errors import DecodeError, UsageError

SOME = Cid.of(b"some")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.binary() | st.binary().map(Cid.of),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def test_a_cid_is_the_sha256_behind_its_prefix() -> None:
    cid = Cid.of(b"bytes")

    assert cid.raw == b"\x01\x55\x12\x20" + hashlib.sha256(b"bytes").digest()
    assert Cid.of(b"bytes", DAG_CBOR).raw == b"\x01\x71\x12\x20" + hashlib.sha256(b"bytes").digest()
    assert str(cid) == "b" + base64.b32encode(cid.raw).decode().lower().rstrip("=")
    assert (cid.codec, Cid.of(b"", DAG_CBOR).codec) == (RAW, DAG_CBOR)


def test_it_is_read_in_whatever_base_it_is_written() -> None:
    assert Cid.parse(str(SOME)) == Cid.parse("f" + SOME.raw.hex()) == Cid.from_bytes(SOME.raw) == SOME


@pytest.mark.parametrize(
    "text", ["", "b", "bafy", "Qm" + "1" * 44, "x" * 1000, "f0155" + "1b20" + "00" * 32, "f01701220" + "00" * 32, "\0", "é" * 59]
)
def test_what_is_no_cid_of_ours_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        Cid.parse(text)


@given(st.text(max_size=120))
def test_text_of_strangers_is_a_cid_or_an_error(text: str) -> None:
    with contextlib.suppress(DecodeError):
        assert len(Cid.parse(text).raw) == 36


@given(values)
def test_what_is_written_is_read_back(value: object) -> None:
    assert dagcbor.decode(dagcbor.encode(value)) == value


def test_a_node_is_written_as_the_specification_says() -> None:
    written = dagcbor.encode({"bb": SOME, "a": [1.5, -1, None, True, b"x"], "c": {}})

    assert written == cbor2.dumps({"a": [1.5, -1, None, True, b"x"], "c": {}, "bb": cbor2.CBORTag(42, b"\0" + SOME.raw)})
    assert written[0] == 0xA3 and b"\xfb\x3f\xf8" in written  # 64-bit floats, whatever their value
    assert list(dagcbor.links(dagcbor.decode(written))) == [SOME]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x18\x01", b"\x00\x00", b"\xf9\x3c\x00", b"\xf9\x7e\x00", b"\xfb\x7f\xf8" + bytes(6), b"\xf7", b"\xe0",
        b"\xa1\x01\x02",
        b"\x9f\xff", b"\xbf\xff", b"\xa2\x61a\x01\x61a\x02", b"\xa2\x62aa\x01\x61b\x02", b"\x62\xc3\x28", b"\x81" * 40 + b"\x00",
        b"\x9b" + b"\xff" * 8, b"\x5b\x7f" + b"\xff" * 7, b"\xc2\x41\x01", b"\xc5\x82\x1b\x7f" + b"\xff" * 7 + b"\x01",
        b"\xd8\x1c\x80",
        b"\xd8\x1d\x00", b"\xd9\x01\x02\x80", b"\xd8\x23\x61a", b"\xd8\x2a\x40", b"\xd8\x2a\x58\x25\x00" + bytes(36),
        b"\xd8\x2a\x78\x3b" + str(SOME).encode(),
    ],
    ids=bytes.hex,
)  # fmt: skip
def test_what_is_not_canonical_or_not_dag_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        dagcbor.decode(data)


def test_references_that_unfold_without_end_are_refused_before_they_do() -> None:
    bomb = b"\xd8\x1c\x81\x00"
    for _ in range(30):
        bomb = b"\xd8\x1c\x82" + bomb + b"\xd8\x1d\x00"

    with pytest.raises(DecodeError):
        dagcbor.decode(bomb)


@given(st.binary(max_size=80))
def test_bytes_of_strangers_are_a_value_or_an_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert dagcbor.encode(dagcbor.decode(data)) == data


@pytest.mark.parametrize(
    "value",
    [1 << 64, -(1 << 64) - 1, math.nan, math.inf, {1: 2}, {1, 2}, object(), "\ud800"],
    ids=lambda value: type(value).__name__,
)
def test_what_dag_cbor_cannot_say_is_the_callers_mistake(value: object) -> None:
    with pytest.raises(UsageError):
        dagcbor.encode(value)
