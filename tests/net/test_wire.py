"""Frames as bytes."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import DecodeError
from legion_p2p.net.envelope import (
    HEAD,
    MAX_ENVELOPE_BYTES,
    MAX_FRAME_BYTES,
    MAX_REASON_CHARS,
    VERSION,
    Envelope,
    FrameKind,
    UnknownVersion,
    check_head,
    decode,
    encode,
    refusal,
)

ENVELOPES = st.builds(
    Envelope,
    version=st.just(VERSION),
    id=st.integers(0, 2**63 - 1),
    kind=st.sampled_from(FrameKind),
    service=st.text(max_size=20),
    error=st.text(max_size=64),
    reason=st.text(max_size=MAX_REASON_CHARS),
)


@given(ENVELOPES, st.integers(0, 1000))
def test_what_is_encoded_is_decoded(envelope, body_bytes):
    head = encode(envelope, body_bytes)

    envelope_bytes, announced = check_head(head[: HEAD.size], "control")
    assert announced == body_bytes
    assert decode(head[HEAD.size :]) == envelope
    assert len(head) == HEAD.size + envelope_bytes


@given(st.binary(max_size=200))
def test_nothing_that_a_stranger_sends_raises_anything_else(data):
    with contextlib.suppress(DecodeError, UnknownVersion):
        assert isinstance(decode(data), Envelope)


VALUES = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5) | st.floats()


@given(VALUES | st.lists(VALUES, max_size=7) | st.dictionaries(st.text(max_size=3), VALUES, max_size=3))
def test_no_messagepack_of_another_type_raises_anything_else(value):
    with contextlib.suppress(DecodeError, UnknownVersion):
        assert isinstance(decode(msgspec.msgpack.encode(value)), Envelope)


@given(st.binary(min_size=6, max_size=6))
def test_every_head_is_within_the_limits_or_refused(head):
    for lane, limit in MAX_FRAME_BYTES.items():
        try:
            envelope_bytes, body_bytes = check_head(head, lane)
        except DecodeError:
            continue
        assert 0 < envelope_bytes <= MAX_ENVELOPE_BYTES
        assert 0 <= body_bytes <= limit


def test_nesting_without_end_is_refused():
    with pytest.raises(DecodeError):
        decode(b"\x91" * MAX_ENVELOPE_BYTES)


def test_an_unknown_version_is_told_with_the_requests_id():
    with pytest.raises(UnknownVersion) as unknown:
        decode(msgspec.msgpack.encode([VERSION + 1, 77, {"what": "ever"}]))

    assert unknown.value.version == VERSION + 1
    assert unknown.value.request_id == 77


def test_the_longest_refusal_fits():
    head = encode(refusal(2**63 - 1, "\U0001f600" * 1000, "\U0001f600" * 10_000), 0)

    assert check_head(head[: HEAD.size], "control") == (len(head) - HEAD.size, 0)
