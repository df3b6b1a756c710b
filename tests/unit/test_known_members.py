"""What a peer says that it knows of members."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.known_members import ROW_BYTES, KnownMembers, pack_known
from legion_p2p.errors import DecodeError

announcements = st.builds(
    Announcement,
    st.sampled_from(["A", "B", "C", "D"]),
    st.just("run"),
    incarnation=st.integers(0, 1 << 40),
    seq=st.integers(0, 1 << 40),
)


def test_what_is_newer_than_known_or_of_somebody_else_is_lacking() -> None:
    known = KnownMembers(pack_known([Announcement("A", "run", incarnation=2, seq=7)]))

    lacking = [
        known.lacks(Announcement(*a)) for a in [("A", "run", 2, 7), ("A", "run", 1, 9), ("A", "run", 2, 8), ("B", "run", 0, 0)]
    ]

    assert lacking == [False, False, True, True]


@given(st.lists(announcements, unique_by=lambda a: a.peer_id))
def test_nobody_lacks_what_it_has_and_each_takes_so_many_bytes(known: list[Announcement]) -> None:
    packed = pack_known(known)

    assert len(packed) == ROW_BYTES * len(known)
    assert not any(KnownMembers(packed).lacks(announcement) for announcement in known)


@given(st.binary(max_size=100).filter(lambda packed: len(packed) % ROW_BYTES))
def test_what_is_no_number_of_rows_is_refused(packed: bytes) -> None:
    with pytest.raises(DecodeError):
        KnownMembers(packed)
