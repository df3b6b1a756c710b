"""Batches out of shared chunks."""

import json
from bisect import bisect_right
from collections import Counter

import numpy as np
import pytest
import torch

from legion_p2p.core.chunks import ChunkLedger
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.train.batches import ChunkedWindows, default_chunk_tokens, n_chunks_of, validation_batches

A, B = PeerId("A"), PeerId("B")
N, CHUNK, CONTEXT, BATCH = 4003, 100, 9, 4
N_CHUNKS = n_chunks_of(N, CHUNK)
WINDOWS_PER_CHUNK = 11  # of 100 or 101 tokens
TEXT = np.arange(N, dtype=np.uint16)  # each token says where it stands


def windows(me: PeerId = A, seed: int = 0, members: tuple[PeerId, ...] = (), batch: int = BATCH) -> ChunkedWindows:
    return ChunkedWindows(TEXT, CHUNK, CONTEXT, batch, seed, ChunkLedger(N_CHUNKS, me), lambda: members)


def chunks_of(x: torch.Tensor) -> list[int]:
    firsts = [chunk * N // N_CHUNKS for chunk in range(N_CHUNKS)]
    return [bisect_right(firsts, int(start)) - 1 for start in x[:, 0]]


def test_the_target_is_the_next_token() -> None:
    x, y = next(windows())

    assert x.shape == y.shape == (BATCH, CONTEXT)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(CONTEXT))


def test_a_lone_peer_reads_everything_once_per_epoch() -> None:
    n_epochs = 5
    source = windows(batch=WINDOWS_PER_CHUNK)
    seen: Counter[int] = Counter()

    for _ in range(n_epochs * N_CHUNKS):
        seen.update(chunks_of(next(source)[0]))

    # the last chunks of an epoch are still open when the first ones of the next are opened: 8 at a time
    behind = {chunk: n_epochs * WINDOWS_PER_CHUNK - seen[chunk] for chunk in range(N_CHUNKS)}
    assert max(map(abs, behind.values())) <= WINDOWS_PER_CHUNK
    assert sum(n != 0 for n in behind.values()) <= 2 * 8


def test_windows_of_a_chunk_lie_side_by_side_and_leave_out_less_than_one_window() -> None:
    source = ChunkedWindows(TEXT[:200], 200, CONTEXT, 1, 0, ChunkLedger(1, A))

    for _ in range(3):
        starts = sorted(int(next(source)[0][0, 0]) for _ in range(199 // CONTEXT))

        assert np.diff(starts).tolist() == [CONTEXT] * (len(starts) - 1)
        assert 0 <= starts[0] < CONTEXT
        assert starts[-1] + CONTEXT <= 199


def test_a_batch_mixes_several_chunks() -> None:
    source = windows(batch=64)

    assert len(set(chunks_of(next(source)[0]))) >= 8


def test_the_same_seed_gives_the_same_batches_and_another_one_others() -> None:
    first, again, other = windows(seed=1), windows(seed=1), windows(seed=2)

    assert all(torch.equal(next(first)[0], next(again)[0]) for _ in range(50))
    assert not torch.equal(next(first)[0], next(other)[0])


def test_two_peers_that_hear_each_other_do_not_read_the_same() -> None:
    sources = {me: windows(me, members=(A, B), batch=1) for me in (A, B)}
    seen: dict[PeerId, set[int]] = {A: set(), B: set()}

    for _ in range((N_CHUNKS - 18) * WINDOWS_PER_CHUNK // 2):
        for me, source in sources.items():
            seen[me].update(chunks_of(next(source)[0]))
            for other in sources.values():
                other.heard(me, *source.announcement())

    assert not seen[A] & seen[B]
    assert len(seen[A] | seen[B]) > N_CHUNKS - 20


def test_a_chunk_given_up_is_not_read_any_further() -> None:
    lonely_a, lonely_b = windows(A), windows(B)
    for _ in range(50):  # 110 make an epoch: some of what A has open by now, B ranks higher for
        next(lonely_a)
        next(lonely_b)
    before = lonely_a.announcement()[1]

    lonely_a.heard(B, *lonely_b.announcement())

    kept = int.from_bytes(lonely_a.announcement()[1], "little")
    lost = int.from_bytes(before, "little") & ~kept
    assert lost
    for _ in range(10):
        assert not any(lost >> chunk & 1 for chunk in chunks_of(next(lonely_a)[0]))
        assert lonely_a.announcement()[0] == 0


def test_a_peer_opens_no_more_than_its_share() -> None:
    crowd = tuple(PeerId(f"peer{i}") for i in range(20))
    source = windows(A, members=crowd, batch=1)

    next(source)

    assert int.from_bytes(source.announcement()[1], "little").bit_count() == N_CHUNKS // 21 == 1


def test_a_restored_source_goes_on_with_the_very_next_batch() -> None:
    old = windows(seed=5)
    for _ in range(150):  # into the second epoch
        next(old)
    state = json.loads(json.dumps(old.state_dict()))
    expected = [next(old)[0] for _ in range(150)]

    new = windows(seed=99)
    new.load_state_dict(state)

    assert all(torch.equal(next(new)[0], x) for x in expected)


def test_the_state_of_another_text_is_refused() -> None:
    state = windows().state_dict()
    other = ChunkedWindows(TEXT[:1000], CHUNK, CONTEXT, BATCH, 0, ChunkLedger(10, A))

    with pytest.raises(DecodeError, match="of 4003 tokens"):
        other.load_state_dict(state)
    with pytest.raises(DecodeError, match="no state"):
        other.load_state_dict({"rng": 3})


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UsageError, match="ledger of 7 chunks, the text has 40"):
        ChunkedWindows(TEXT, CHUNK, CONTEXT, BATCH, 0, ChunkLedger(7, A))
    with pytest.raises(UsageError, match="hold no window"):
        ChunkedWindows(TEXT, CHUNK, 100, BATCH, 0, ChunkLedger(N_CHUNKS, A))
    with pytest.raises(UsageError, match="batch 0"):
        ChunkedWindows(TEXT, CHUNK, CONTEXT, 0, 0, ChunkLedger(N_CHUNKS, A))


def test_the_reference_text_has_256_chunks_and_a_short_one_fewer() -> None:
    assert n_chunks_of(11_260_712, default_chunk_tokens(11_260_712, 64)) == 256
    assert n_chunks_of(10_000, default_chunk_tokens(10_000, 64)) == 20
    assert n_chunks_of(65, default_chunk_tokens(65, 64)) == 1
    for n in (65, 500, 513, 600, 777, 1025, 5000, 123_456):
        assert n // n_chunks_of(n, default_chunk_tokens(n, 64)) >= 65


def test_validation_windows_are_evenly_spaced_from_the_first_token_to_the_last() -> None:
    batches = list(validation_batches(TEXT, CONTEXT, n_windows=100, batch=64))

    assert [len(x) for x, _ in batches] == [64, 36]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert x[0, 0] == 0 and y[-1, -1] == N - 1
    assert torch.equal(y, x + 1)
    assert set(x[:, 0].diff().tolist()) <= {40, 41}


def test_a_validation_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(StoreError, match="of 9 tokens, context 9 needs 10"):
        next(validation_batches(TEXT[:9], CONTEXT))
