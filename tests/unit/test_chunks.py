"""Who reads what: assignment, claims, conflicts, epochs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core import chunks
from legion_p2p.core.chunks import ChunkLedger, LedgerState, assigned_to, chunk_ids
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, UsageError

A, B, C, D = (PeerId(name) for name in "ABCD")
peer_sets = st.sets(st.text(min_size=1, max_size=8).map(PeerId), min_size=1, max_size=12)


def take_all(ledger: ChunkLedger, members: set[PeerId]) -> list[int]:
    """Claim and read until the epoch is over."""
    taken = []
    while (chunk := ledger.claim(members)) is not None:
        ledger.finished(chunk)
        taken.append(chunk)
    return taken


def bitmap_of(n_chunks: int, *taken: int) -> bytes:
    return sum(1 << c for c in taken).to_bytes(-(-n_chunks // 8), "little")


def test_the_assignment_stays_what_it_is() -> None:
    assigned = assigned_to(chunk_ids(12, b"text"), [A, B, C], epoch=7)

    assert "".join(assigned.values()) == "BBCBCBBAABAC"


@given(peers=peer_sets, epoch=st.integers(0, chunks.MAX_EPOCH), n_chunks=st.integers(1, 60))
def test_every_chunk_has_exactly_one_reader_and_all_agree_who(peers: set[PeerId], epoch: int, n_chunks: int) -> None:
    ids = chunk_ids(n_chunks, b"text")

    assigned = assigned_to(ids, peers, epoch)

    assert list(assigned) == ids
    assert set(assigned.values()) <= peers
    assert assigned == assigned_to(ids, sorted(peers, reverse=True), epoch)


@given(peers=peer_sets, new=st.text(min_size=9, max_size=9).map(PeerId))
def test_one_that_joins_takes_from_others_but_moves_nothing_between_them(peers: set[PeerId], new: PeerId) -> None:
    ids = chunk_ids(60, b"text")

    before, after = assigned_to(ids, peers, 3), assigned_to(ids, {*peers, new}, 3)

    assert all(after[c] in (before[c], new) for c in ids)


def test_shares_are_equal_within_chance_and_change_with_the_epoch() -> None:
    ids = chunk_ids(8192, b"text")
    peers = [PeerId(f"peer{i}") for i in range(16)]

    first, second = assigned_to(ids, peers, 0), assigned_to(ids, peers, 1)

    # 512 expected, standard deviation 22
    assert all(400 < n < 624 for n in Counter(first.values()).values())
    assert sum(first[c] == second[c] for c in ids) == pytest.approx(8192 / 16, rel=0.25)


@given(peers=peer_sets, n_chunks=st.integers(1, 40), data=st.data())
@settings(max_examples=50)
def test_peers_that_hear_each_other_read_everything_once(peers: set[PeerId], n_chunks: int, data: st.DataObject) -> None:
    ledgers = {peer: ChunkLedger(n_chunks, peer) for peer in sorted(peers)}
    read: Counter[int] = Counter()

    for _ in range(n_chunks):
        ledger = ledgers[data.draw(st.sampled_from(sorted(peers)))]  # of any speed
        chunk = ledger.claim(peers)
        if chunk is None:
            break
        read[chunk] += 1
        for other in ledgers.values():
            assert other.heard(ledger.me, ledger.epoch, ledger.bitmap()) == ()

    assert set(read.values()) == {1}
    assert len(read) == n_chunks


def test_without_hearing_anybody_peers_first_read_what_is_theirs() -> None:
    ledgers = [ChunkLedger(30, peer) for peer in (A, B, C)]
    ids = chunk_ids(30, b"")
    assigned = assigned_to(ids, [A, B, C], 0)

    for ledger in ledgers:
        own = {i for i, c in enumerate(ids) if assigned[c] == ledger.me}
        assert {ledger.claim([A, B, C]) for _ in own} == own


def test_a_fast_peer_helps_from_the_far_end_of_the_slow_ones_order() -> None:
    fast, slow = ChunkLedger(30, A), ChunkLedger(30, B)
    ids = chunk_ids(30, b"")
    n_fast = list(assigned_to(ids, [A, B], 0).values()).count(A)
    slow_order = [slow.claim([A, B]) for _ in range(30 - n_fast)]

    fast_order = [fast.claim([A, B]) for _ in range(30)]

    assert fast_order[n_fast:] == slow_order[::-1]


def test_when_two_took_the_same_the_one_that_ranks_higher_keeps_it() -> None:
    alone_a, alone_b = ChunkLedger(20, A), ChunkLedger(20, B)  # both believe that they are alone
    for _ in range(20):
        alone_a.claim([])
        alone_b.claim([])
    bitmap_a, bitmap_b = alone_a.bitmap(), alone_b.bitmap()

    lost_by_a, lost_by_b = alone_a.heard(B, 0, bitmap_b), alone_b.heard(A, 0, bitmap_a)

    assigned = list(assigned_to(chunk_ids(20, b""), [A, B], 0).values())
    assert {assigned[c] for c in lost_by_a} == {B}
    assert {assigned[c] for c in lost_by_b} == {A}
    assert sorted(lost_by_a + lost_by_b) == list(range(20))
    assert not any(alone_a.holds(c) for c in lost_by_a)


def test_what_is_read_is_never_given_up() -> None:
    ledger = ChunkLedger(20, A)
    take_all(ledger, set())

    assert ledger.heard(B, 0, bitmap_of(20, *range(20))) == ()
    assert ledger.bitmap() == bitmap_of(20, *range(20))


def test_what_another_gave_up_is_free_again() -> None:
    ledger = ChunkLedger(1, A)
    ledger.heard(B, 0, bitmap_of(1, 0))
    ledger.heard(B, 0, bitmap_of(1))

    assert ledger.claim([B]) == 0


def test_the_text_of_a_dead_peer_counts_as_read() -> None:
    ledger = ChunkLedger(10, A)
    ledger.heard(B, 0, bitmap_of(10, 2, 3))

    assert sorted(take_all(ledger, set())) == [0, 1, 4, 5, 6, 7, 8, 9]


def test_the_next_epoch_starts_with_what_was_heard_of_it() -> None:
    ledger = ChunkLedger(10, A)
    take_all(ledger, {B, C})
    ledger.heard(B, 1, bitmap_of(10, 5))

    ledger.next_epoch()

    assert ledger.epoch == 1
    assert ledger.bitmap() == bitmap_of(10)
    assert sorted(take_all(ledger, {B, C})) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_one_that_went_ahead_keeps_what_it_took_in_this_epoch() -> None:
    ledger = ChunkLedger(4, A)
    ledger.claim({B, C, D})
    ledger.heard(B, 0, bitmap_of(4, 0, 1, 2, 3))
    ledger.heard(B, 1, bitmap_of(4))

    assert ledger.claim({B, C, D}) is None


def test_a_newcomer_goes_to_the_epoch_of_the_others_at_once() -> None:
    ledger = ChunkLedger(10, A)
    ledger.heard(B, 9, bitmap_of(10, 1))

    assert ledger.claim({B}) is None
    ledger.next_epoch()

    assert ledger.epoch == 9
    assert ledger.claim({B}) not in (None, 1)


def test_only_more_than_half_of_the_members_end_an_epoch_early() -> None:
    ledger = ChunkLedger(100, A)
    ledger.claim({B, C, D})
    ledger.heard(B, 1, bitmap_of(100))
    ledger.heard(C, chunks.MAX_EPOCH, bitmap_of(100))
    ledger.heard(D, 0, bitmap_of(100))

    assert ledger.claim({B, C, D}) is not None
    ledger.heard(D, 1, bitmap_of(100))

    assert ledger.claim({B, C, D}) is None
    ledger.next_epoch()
    assert ledger.epoch == 1


def test_the_last_epoch_that_can_be_announced_repeats() -> None:
    ledger = ChunkLedger(4, A)
    ledger.heard(B, chunks.MAX_EPOCH, bitmap_of(4))
    assert ledger.claim({B}) is None
    for _ in range(2):
        ledger.next_epoch()

        assert ledger.epoch == chunks.MAX_EPOCH
        assert len(take_all(ledger, {B})) == 4


def test_a_liar_that_takes_everything_leaves_one_chunk_an_epoch() -> None:
    ledger = ChunkLedger(50, A)
    read = set()

    for epoch in range(200):
        ledger.heard(D, epoch, bitmap_of(50, *range(50)))
        chunk = ledger.claim({B, D})
        assert chunk is not None
        read.add(chunk)
        assert ledger.heard(D, epoch, bitmap_of(50, *range(50))) == ()
        assert ledger.claim({B, D}) is None
        ledger.next_epoch()

    assert len(read) > 40  # not always the same


def test_a_restored_ledger_goes_on_where_the_old_one_was() -> None:
    old, new = ChunkLedger(20, A), ChunkLedger(20, A)
    old.next_epoch()
    first = old.claim({B})
    assert first is not None
    old.finished(first)
    old.claim({B})

    new.restore(old.state())

    assert (new.epoch, new.bitmap(), new.is_read(first)) == (1, old.bitmap(), True)
    assert new.claim({B}) == old.claim({B})


@pytest.mark.parametrize(
    ("n_chunks", "epoch", "bitmap"),
    [(9, 0, b"\0"), (9, 0, b"\0\0\0"), (9, 0, b"\0\x02"), (9, -1, b"\0\0"), (9, 2**32, b"\0\0")],
)
def test_an_impossible_announcement_is_refused(n_chunks: int, epoch: int, bitmap: bytes) -> None:
    ledger = ChunkLedger(n_chunks, A)

    with pytest.raises(DecodeError):
        ledger.heard(B, epoch, bitmap)
    assert len(take_all(ledger, set())) == n_chunks


def test_an_impossible_state_is_refused() -> None:
    with pytest.raises(DecodeError, match="not taken"):
        ChunkLedger(8, A).restore(LedgerState(epoch=0, taken=b"\0", read=b"\1"))


@pytest.mark.parametrize("n_chunks", [0, chunks.MAX_CHUNKS + 1])
def test_the_number_of_chunks_is_limited(n_chunks: int) -> None:
    with pytest.raises(UsageError, match="chunks"):
        ChunkLedger(n_chunks, A)


def test_only_what_was_taken_can_be_finished() -> None:
    with pytest.raises(UsageError, match="not taken"):
        ChunkLedger(8, A).finished(3)


def test_strangers_cannot_fill_the_memory_and_what_they_took_stays_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_HEARD_PEERS", 3)
    ledger = ChunkLedger(10, A)

    for i in range(8):
        ledger.heard(PeerId(f"stranger{i}"), 0, bitmap_of(10, i))

    assert len(ledger._heard) == len(ledger._taken_by) == 3
    assert sorted(take_all(ledger, set())) == [8, 9]
