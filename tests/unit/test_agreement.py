"""When all members of a run have finished with the same model."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.agreement import Agreement
from legion_p2p.core.announcement import Announcement

SAME, OTHER = b"same", b"other"


def member(done: bool = True, marks: bytes = SAME, region: str = "here") -> Announcement:
    return Announcement("peer", "run", region=region, done=done, marks=marks)


def looks(*looks: tuple[float, bool, bytes, list[Announcement]]) -> list[bool]:
    agreement = Agreement(wait_s=3.0)
    return [agreement.look(done, marks, "here", others, now) for now, done, marks, others in looks]


def test_all_have_finished_once_they_have_agreed_for_an_announcements_time() -> None:
    others = [member(), member()]

    assert looks((0, True, SAME, others), (2.9, True, SAME, others), (3.0, True, SAME, others)) == [False, False, True]


def test_a_peer_alone_has_finished_at_once() -> None:
    assert looks((0, True, SAME, [])) == [True]


def test_nobody_has_finished_while_one_is_not_done() -> None:
    assert looks((0, True, SAME, [member(done=False)]), (9, True, SAME, [member(), member(done=False)])) == [False, False]
    assert looks((0, False, SAME, [member()]), (9, False, SAME, [member()])) == [False, False]


def test_members_of_the_region_must_hold_the_same_and_those_of_another_need_not() -> None:
    assert looks((0, True, SAME, [member(marks=OTHER)]), (9, True, SAME, [member(marks=OTHER)])) == [False, False]
    there = [member(marks=OTHER, region="there")]
    assert looks((0, True, SAME, there), (3, True, SAME, there)) == [False, True]


def test_a_new_version_begins_the_wait_again() -> None:
    old, new = [member()], [member(marks=OTHER)]

    assert looks((0, True, SAME, old), (2, True, OTHER, new), (4, True, OTHER, new), (5, True, OTHER, new)) == [
        False, False, False, True,
    ]  # fmt: skip


def test_a_member_that_trains_on_begins_the_wait_again() -> None:
    busy = [msgspec.structs.replace(member(), done=False)]

    assert looks((0, True, SAME, [member()]), (2, True, SAME, busy), (4, True, SAME, [member()])) == [False, False, False]


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.booleans(), st.booleans()), max_size=20))
def test_all_have_finished_only_after_an_unbroken_time_of_agreement(steps: list[tuple[float, bool, bool, bool]]) -> None:
    agreement = Agreement(wait_s=3.0)
    now, since = 0.0, None
    for pause_s, done, other_done, same in steps:
        now += pause_s
        agreed = done and other_done and same
        since = (now if since is None else since) if agreed else None

        finished = agreement.look(done, SAME, "here", [member(done=other_done, marks=SAME if same else OTHER)], now)

        assert finished == (since is not None and now - since >= 3.0)
