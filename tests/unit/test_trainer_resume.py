"""A trainer that stopped reads on where it was, and draws the same random numbers."""

import numpy as np
import pytest
import torch

from legion_p2p.core.chunks import ChunkLedger
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import MAX_STATE_BYTES
from legion_p2p.errors import DecodeError
from legion_p2p.train.batches import ChunkedWindows
from legion_p2p.train.resume import restore_state, training_state

ME, OTHER = PeerId("me"), PeerId("other")


def reader(n_tokens: int = 4096, chunk_tokens: int = 256, context: int = 8, seed: int = 3) -> ChunkedWindows:
    tokens = np.arange(n_tokens, dtype=np.uint16)
    return ChunkedWindows(tokens, chunk_tokens, context, 4, seed, ChunkLedger(n_tokens // chunk_tokens, ME))


def test_the_same_batches_and_random_numbers_follow() -> None:
    before = reader()
    for _ in range(20):
        next(before)
    torch.rand(3)
    state = training_state(ME, before)
    expected, drawn = [next(before)[0] for _ in range(60)], torch.rand(5)

    after = reader(seed=99)
    restore_state(state, ME, after)

    assert torch.rand(5).equal(drawn)
    assert all(next(after)[0].equal(batch) for batch in expected)


def test_beside_somebody_elses_state_nothing_is_read_again() -> None:
    before = reader(n_tokens=64 * 256)
    before.heard(OTHER, 0, (0b1111).to_bytes(8, "little"))
    seen = torch.cat([next(before)[0].reshape(-1) for _ in range(40)])
    state = training_state(ME, before)
    taken = {int(token) // 256 for token in seen} | {0, 1, 2, 3}

    beside = ChunkedWindows(np.arange(64 * 256, dtype=np.uint16), 256, 8, 4, 5, ChunkLedger(64, OTHER))
    restore_state(state, OTHER, beside)
    first = next(beside)[0]

    assert not {int(token) // 256 for token in first.reshape(-1)} & taken


def test_the_state_of_a_long_text_fits_into_a_checkpoint() -> None:
    long = reader(n_tokens=3_000_000, chunk_tokens=200_000, context=8)
    next(long)
    state = training_state(ME, long)

    assert sum(len(value) for value in state.values() if isinstance(value, bytes)) < MAX_STATE_BYTES
    restore_state(state, ME, reader(n_tokens=3_000_000, chunk_tokens=200_000, context=8))


@pytest.mark.parametrize(
    "state", [{}, {"data": 3}, {"data": b"\xc1"}, {"data": b"\x80"}], ids=["none", "number", "garbage", "empty"]
)
def test_a_state_that_is_none_is_refused(state: dict) -> None:
    for peer in ("me", "other"):
        with pytest.raises(DecodeError):
            restore_state({"peer": peer, **state}, ME, reader())
