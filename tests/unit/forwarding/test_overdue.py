"""What a member does about an update that was promised to it and does not come."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.forwarding.overdue import MAX_INQUIRIES, FetchFrom, Inquire, Overdue, Promise
from legion_p2p.core.identity import PeerId

PARENT, ABOVE, OWNER = (PeerId(name) for name in ("parent", "above", "owner"))
PROMISE = Promise(5, 10.0, PARENT, (ABOVE, OWNER), 2.0)


def promised(promise: Promise = PROMISE) -> Overdue:
    overdue = Overdue()
    overdue.promised(promise)
    return overdue


def test_nobody_is_asked_before_the_update_is_overdue_nor_once_it_is_here() -> None:
    overdue = promised()

    assert overdue.look(4, 9.9) is None and overdue.next_deadline() == 10.0
    assert overdue.look(5, 10.0) is None and overdue.next_deadline() is None


def test_a_parent_that_does_not_answer_is_given_up_and_the_one_above_asked_for_the_update() -> None:
    overdue = promised()

    assert overdue.look(4, 10.0) == Inquire(PARENT)
    assert overdue.look(4, 10.1) is None, "the answer is on its way"
    overdue.answered(PARENT, None, 11.0)

    assert overdue.look(4, 11.0) == FetchFrom(ABOVE, 2.0)


def test_a_parent_that_waits_itself_is_waited_for_longer_each_time() -> None:
    overdue, now, waits = promised(), 10.0, []

    for _ in range(MAX_INQUIRIES):
        assert overdue.look(4, now) == Inquire(PARENT)
        overdue.answered(PARENT, 4, now)
        deadline = overdue.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline

    assert waits == [2.0, 4.0, 8.0]
    assert overdue.look(4, now) == FetchFrom(ABOVE, 2.0)


def test_a_parent_that_has_the_update_and_does_not_send_it_is_waited_for_once_more() -> None:
    overdue = promised()
    overdue.look(4, 10.0)

    overdue.answered(PARENT, 5, 10.1)

    assert overdue.look(4, 12.0) is None
    assert overdue.look(4, 12.1) == FetchFrom(ABOVE, 2.0)


def test_an_owner_that_sends_the_update_itself_is_not_asked_for_a_second_copy_while_its_link_is_full() -> None:
    overdue = promised(Promise(5, 10.0, OWNER, (OWNER,), 2.0))

    overdue.look(4, 10.0)
    overdue.answered(OWNER, 5, 10.1)

    assert overdue.look(4, 12.1) == Inquire(OWNER)


def test_those_above_are_asked_one_after_the_other_and_at_once_where_one_cannot_be_reached() -> None:
    overdue = promised()
    overdue.failed(PROMISE, 10.0)

    assert overdue.look(4, 10.0) == FetchFrom(ABOVE, 2.0)
    assert overdue.look(4, 11.9) is None
    overdue.unreachable(11.9)
    assert overdue.look(4, 11.9) == FetchFrom(OWNER, 2.0)
    assert overdue.look(4, 100.0) is None and overdue.next_deadline() is None, "announcements tell what follows"


def test_another_peer_answers_for_nobody() -> None:
    overdue = promised()
    overdue.look(4, 10.0)

    overdue.answered(ABOVE, None, 10.1)

    assert overdue.look(4, 10.1) is None


@given(st.lists(st.sampled_from(["none", "old", "new", "lost", "time"]), max_size=40))
def test_whatever_is_answered_few_are_asked_and_each_for_the_update_once(answers: list[str]) -> None:
    overdue, now = promised(), 10.0
    inquiries, fetched = 0, []

    for answer in answers:
        match overdue.look(4, now):
            case Inquire():
                inquiries += 1
            case FetchFrom(peer):
                fetched.append(peer)
        match answer:
            case "none" | "old" | "new":
                overdue.answered(PARENT, {"none": None, "old": 4, "new": 5}[answer], now)
            case "lost":
                overdue.unreachable(now)
            case _:
                now = max(now, overdue.next_deadline() or now)

    assert inquiries <= MAX_INQUIRIES and fetched == [ABOVE, OWNER][: len(fetched)]
