"""Which versions members hold: digests of many marks, and questions about those that differ."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import MAX_MARKS_SHOWN, Announcement, Mark, pack_marks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import (
    KEEP_S,
    MAX_BOOKS,
    MarkBooks,
    announced_version,
    differences,
    pack_checks,
    pack_shards,
    shown,
    state_of,
    unpack_rows,
    unpack_shards,
)
from legion_p2p.errors import DecodeError

MANY = MAX_MARKS_SHOWN + 8
PEER = PeerId("peer")
OURS = pack_marks([Mark(5, shard) for shard in range(MANY)])
THEIRS = pack_marks([Mark(5 + shard % 2, shard) for shard in range(MANY)])
mark_lists = st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)), min_size=1, max_size=40)


def saying(packed: bytes, seq: int = 0) -> Announcement:
    told = shown(packed)
    return Announcement("peer", "run", seq=seq, marks=told.marks, marks_digest=told.digest, version=told.version)


def books(packed: bytes, ours: bytes = OURS) -> MarkBooks:
    """After an announcement of a member that holds these."""
    known = MarkBooks(MANY)
    known.take(PEER, saying(packed), ours)
    return known


def test_few_marks_are_announced_in_full_and_of_many_a_digest() -> None:
    few = pack_marks([Mark(3, 1)] * MAX_MARKS_SHOWN)

    assert shown(few).marks == few and not shown(few).digest
    assert not shown(OURS).marks and len(shown(OURS).digest) == 16
    assert state_of(few) == few and state_of(OURS) == shown(OURS).digest and state_of(b"") == b""


def test_an_announcement_is_as_long_with_any_number_of_shards_beyond_that() -> None:
    assert len(shown(pack_marks([Mark(7, 1)] * 4096)).digest) == len(shown(OURS).digest)


def test_two_that_differ_in_one_shard_announce_different_digests() -> None:
    other = OURS[:-8] + pack_marks([Mark(6, MANY - 1)])

    assert saying(OURS).state != saying(other).state and saying(OURS).state == saying(OURS).state


def test_the_version_of_a_shard_is_about_that_of_half_of_them() -> None:
    ahead = pack_marks([Mark(1000, 0)] * 3 + [Mark(7, 0)] * (MANY - 3))

    assert announced_version(saying(ahead), 0) == 7
    assert announced_version(saying(pack_marks([Mark(1000, 0), Mark(7, 0)])), 0) == 1000
    assert announced_version(Announcement("peer", "run"), 0) is None


@given(mark_lists, st.data())
def test_an_answer_names_the_shards_in_which_the_two_differ(theirs: list[tuple[int, int]], data: st.DataObject) -> None:
    n = len(theirs)
    ours = [data.draw(st.sampled_from([mark, (mark[0], mark[1] ^ 1)])) for mark in theirs]
    shards = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    packed_ours, packed_theirs = (pack_marks([Mark(*mark) for mark in marks]) for marks in (ours, theirs))
    salt = data.draw(st.integers(0, 1 << 62))

    asked = unpack_shards(pack_shards(shards, n), n)
    rows = unpack_rows(differences(packed_theirs, asked, pack_checks(packed_ours, asked, salt), salt), asked)

    assert asked == shards
    assert all(rows[shard] == Mark(*theirs[shard]) for shard in rows)
    assert all(ours[shard] != theirs[shard] for shard in rows)


def test_what_differs_is_named_by_one_of_two_questions() -> None:
    rng, asked = random.Random(1), list(range(MANY))
    for _ in range(200):
        first, second = (
            differences(THEIRS, asked, pack_checks(OURS, asked, n), n) for n in (rng.getrandbits(62), rng.getrandbits(62))
        )
        assert set(unpack_rows(first, asked)) | set(unpack_rows(second, asked)) == set(range(1, MANY, 2))


def test_one_that_holds_nothing_is_told_all() -> None:
    rows = unpack_rows(differences(THEIRS, [1, 2], b"", 0), [1, 2])

    assert rows == {1: Mark(6, 1), 2: Mark(5, 2)}


@pytest.mark.parametrize("checks", [b"x", bytes(6)])
def test_checks_of_another_number_of_shards_are_refused(checks: bytes) -> None:
    with pytest.raises(DecodeError, match="for 2 shards"):
        differences(THEIRS, [1, 2], checks, 0)


def test_a_question_about_a_shard_that_there_is_not_is_refused() -> None:
    with pytest.raises(DecodeError, match=f"shard {MANY}, there are {MANY}"):
        unpack_shards(pack_shards([0, MANY], MANY + 8), MANY)


@pytest.mark.parametrize(("rows", "what"), [(b"x" * 9, "multiple"), (differences(OURS, [3], b"", 0), r"\[3\]")])
def test_an_answer_that_answers_something_else_is_refused(rows: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        unpack_rows(rows, [1, 2])


def test_of_a_member_that_holds_the_same_everything_is_known() -> None:
    known = books(OURS)

    assert known.mark(PEER, 3) == Mark(5, 3) and known.whole(PEER) == OURS and known.known(PEER) == list(range(MANY))
    assert known.unknown(PEER, [1, 2], 0) == []


def test_of_another_nothing_is_known_until_it_has_answered() -> None:
    known = books(THEIRS)

    assert not known.take(PEER, saying(THEIRS), OURS)
    assert known.mark(PEER, 1) is None and known.unknown(PEER, [1, 2], 0) == [1, 2]

    known.answered(PEER, {1: Mark(6, 1)}, 10.0)

    assert known.mark(PEER, 1) == Mark(6, 1) and known.known(PEER) == [1]
    assert known.unknown(PEER, [1, 2], 9.0) == [2] and known.unknown(PEER, [1, 2], 10.0) == [1, 2]


def test_what_a_member_held_is_remembered_while_this_peer_goes_on() -> None:
    known = books(OURS)

    known.take(PEER, saying(OURS), THEIRS)

    assert known.mark(PEER, 1) == Mark(5, 1)


def test_a_peer_that_comes_to_what_another_had_announced_knows_what_that_holds() -> None:
    known = books(THEIRS)

    assert known.take(PEER, saying(THEIRS), THEIRS) and known.mark(PEER, 1) == Mark(6, 1)


def test_answers_are_kept_over_newer_announcements_for_a_while() -> None:
    known = books(THEIRS)
    known.answered(PEER, {1: Mark(6, 1)}, 10.0)

    known.take(PEER, saying(THEIRS, seq=1), OURS)
    assert known.mark(PEER, 1) == Mark(6, 1)

    known.answered(PEER, {2: Mark(5, 2)}, 10.0 + KEEP_S)
    assert known.mark(PEER, 1) is None and known.mark(PEER, 2) == Mark(5, 2)


def test_what_a_member_answered_is_forgotten_when_it_holds_the_shards_no_longer() -> None:
    known = books(THEIRS)
    known.answered(PEER, {1: Mark(6, 1)}, 10.0)

    assert known.take(PEER, saying(b"", seq=1), OURS)

    assert known.mark(PEER, 1) is None and known.known(PEER) == []


def test_marks_in_full_need_no_question_and_replace_what_was_answered() -> None:
    known, few = MarkBooks(2), pack_marks([Mark(1, 2), Mark(3, 4)])

    assert known.take(PEER, saying(few), b"")
    assert known.mark(PEER, 1) == Mark(3, 4) and known.whole(PEER) == few


@pytest.mark.parametrize("marks", [b"", pack_marks([Mark(1, 2)])])
def test_marks_of_another_number_of_shards_say_nothing(marks: bytes) -> None:
    known = MarkBooks(2)

    assert known.take(PEER, saying(marks), b"") and known.mark(PEER, 0) is None


def test_a_member_that_counts_no_longer_is_forgotten() -> None:
    known = books(OURS)

    assert known.take(PEER, None, OURS) and known.mark(PEER, 1) is None


def test_books_are_bounded() -> None:
    known = MarkBooks(MANY)
    for n in range(MAX_BOOKS + 1):
        known.take(PeerId(str(n)), saying(OURS), OURS)

    assert known.mark(PeerId("0"), 1) is None and known.mark(PeerId("1"), 1) == Mark(5, 1)
