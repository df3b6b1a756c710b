"""Messages that are sent from several places are the same bytes as those in one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.messages.base import MAX_PAYLOAD_BYTES
from legion_p2p.core.spliced import Pieces, Spliced, coalesced, parts_of, start_of
from legion_p2p.core.wire import (
    ALIGNED_BYTES,
    SPLICED_FROM_BYTES,
    GetRuns,
    Push,
    Update,
    decode_request,
    encode,
    encode_to_send,
)
from legion_p2p.errors import SelfCheckError

PAYLOAD = bytes(range(256)) * (SPLICED_FROM_BYTES // 256)


def push_of(run: str = "r", payload: bytes | memoryview = PAYLOAD, tokens: int = 1) -> Push:
    return Push(run, 1, 2, 3, tokens, 5, "fp32", payload, b"s" * 64)


@given(st.text(min_size=1, max_size=100).filter(lambda run: len(run.encode()) < 400), st.integers(1, 1 << 62))
def test_a_message_in_parts_says_what_one_in_one_piece_says(run: str, tokens: int) -> None:
    sent = encode_to_send(push_of(run, tokens=tokens))

    assert isinstance(sent, Spliced)
    assert decode_request(bytes(sent)) == decode_request(encode(push_of(run, tokens=tokens)))


@given(st.integers(1, 100))
def test_the_payload_lies_where_fp32_values_can_be_read(n_chars: int) -> None:
    before, payload, _ = parts_of(encode_to_send(push_of("r" * n_chars)))

    assert payload is PAYLOAD
    assert len(before) % ALIGNED_BYTES == 0


def test_a_short_payload_is_copied_and_a_message_without_one_is_as_it_was() -> None:
    short = push_of(payload=PAYLOAD[1:])

    assert encode_to_send(short) == encode(short)
    assert encode_to_send(GetRuns()) == encode(GetRuns())


def test_the_message_that_contains_another_ones_field_names_is_taken_apart_at_the_right_place() -> None:
    update = Update(b"\xa7payload\xc4\x10", b"\xa7payload\xc4\x10", memoryview(PAYLOAD))

    assert decode_request(bytes(encode_to_send(update))) == update


def test_what_its_receiver_would_refuse_is_not_sent() -> None:
    with pytest.raises(SelfCheckError, match="limit is"):
        encode_to_send(push_of(payload=memoryview(bytes(MAX_PAYLOAD_BYTES + 1))))
    with pytest.raises(SelfCheckError, match="Push that its receiver would refuse"):
        encode_to_send(push_of("r" * 101))


@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 60))
def test_pieces_are_the_same_bytes_in_the_sizes_that_were_asked_for(parts: list[bytes], size: int) -> None:
    pieces, taken = Pieces(parts), []
    while pieces:
        taken.append(pieces.take(size))

    assert b"".join(taken) == b"".join(parts)
    assert [len(piece) for piece in taken[:-1]] == [size] * (len(taken) - 1)


@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 60))
def test_short_neighbours_become_one_and_long_parts_are_not_copied(parts: list[bytes], limit: int) -> None:
    found = list(coalesced(parts, limit))

    assert b"".join(found) == b"".join(parts)
    assert [part for part in found if len(part) > limit] == [part for part in parts if len(part) > limit]
    assert all(len(a) + len(b) > limit for a, b in pairwise(found))


def test_bytes_are_one_part() -> None:
    assert parts_of(b"abc") == (b"abc",)
    assert start_of(Spliced(b"ab", b"c")) == b"ab"
    assert len(Spliced(b"ab", b"c")) == 3
