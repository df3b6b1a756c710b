"""Everything that reads what strangers may have written: whatever the bytes are, it gives a value or its error, in little memory.

Each decoder is fed with changed forms of something valid, which get further than random bytes. What broke decoders of this kind
elsewhere stays in tests/decoders.py as examples: `SEEDS`.
"""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from legion_p2p.errors import LegionError
from legion_p2p.observe.human import clean
from tests.decoders import DECODERS, MAX_PEAK_BYTES, REFUSALS, SEEDS, N, corpus

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6)), max_size=4)


def changed(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """`data` with some bytes taken out and others put there."""
    for place, n_out, put in edits:
        at = int(place * len(data))
        data = data[:at] + put + data[at + n_out :]
    return data


def check(decode: Callable[[bytes], Any], data: bytes) -> None:
    tracemalloc.start()
    try:
        decode(data)
    except REFUSALS:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES, f"{peak} bytes for {len(data)}"


@pytest.mark.parametrize("name", DECODERS)
@given(edits=EDITS)
@example(edits=[(0.0, 10**9, b"")])
@settings(max_examples=60)
def test_whatever_arrives_is_read_or_refused(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    decode, valid = DECODERS[name]

    check(decode, changed(valid, edits))


@pytest.mark.parametrize("name", sorted(corpus()))
def test_what_fuzzing_has_kept_is_read_or_refused(name: str) -> None:
    for data in corpus()[name]:
        check(DECODERS[name][0], data)


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, kept in SEEDS.items() for data in kept])
def test_what_breaks_decoders_elsewhere_is_refused(name: str, data: bytes) -> None:
    check(DECODERS[name][0], data)


@pytest.mark.parametrize("name", [name for name in DECODERS if name.startswith("codec ")])
@given(data=st.binary(max_size=400))
@settings(max_examples=40)
def test_a_payload_decodes_to_finite_numbers_of_the_right_length_or_not_at_all(name: str, data: bytes) -> None:
    try:
        made = DECODERS[name][0](data)
    except LegionError:
        return
    assert made.shape == (N,) and made.dtype == torch.float32


@given(st.text(max_size=80))
@example("\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\u2066\r\n\x00")
def test_no_text_of_a_stranger_moves_the_cursor_of_a_terminal(text: str) -> None:
    shown = clean(text)

    assert all(char.isprintable() for char in shown), "no control character, and none that turns the direction of writing"
    assert not {"\x1b", "\x9b", "\u202e", "\u2066"} & set(shown)


def test_every_example_is_one_that_its_decoder_knows() -> None:
    """Or the changed forms would never get beyond the first check."""
    refused = set()
    for name, (decode, valid) in DECODERS.items():
        try:
            decode(valid)
        except REFUSALS:
            refused.add(name)

    unlike = {
        "manifest",
        "stored shard",
        "base",
        "data set",
        "file node",
        "envelope",
        "gateway description",
        "PCP reply",
        "SSDP answer",
    }
    assert refused <= unlike | {"NAT-PMP reply"}, refused
