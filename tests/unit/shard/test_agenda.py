"""When which shard is to be looked at."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.shard.agenda import MIN_STALE, Agenda


def test_what_is_due_is_given_once_the_earliest_first() -> None:
    agenda = Agenda()
    agenda.set(1, 3.0)
    agenda.set(2, 1.0)
    agenda.set(3, 9.0)

    assert agenda.next_deadline() == 1.0
    assert agenda.due(3.0) == [2, 1] and agenda.due(3.0) == []
    assert agenda.next_deadline() == 9.0


def test_a_later_word_about_a_shard_replaces_the_earlier_one() -> None:
    agenda = Agenda()
    agenda.set(1, 3.0)
    agenda.set(1, 5.0)
    agenda.set(2, 4.0)
    agenda.set(2, None)

    assert agenda.due(4.0) == [] and agenda.next_deadline() == 5.0


def test_the_heap_does_not_grow_with_the_number_of_changes() -> None:
    agenda = Agenda()

    for n in range(10_000):
        agenda.set(n % 4, float(n))

    assert len(agenda._heap) <= 2 * 4 + MIN_STALE


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 20).map(float)), max_size=50), st.integers(0, 20))
def test_each_shard_is_due_by_its_last_word_alone(words: list[tuple[int, float | None]], now: int) -> None:
    agenda, last = Agenda(), {}
    for shard, at in words:
        agenda.set(shard, at)
        last[shard] = at

    due = agenda.due(float(now))

    assert sorted(due) == sorted(shard for shard, at in last.items() if at is not None and at <= now)
    later = [at for shard, at in last.items() if at is not None and at > now]
    assert agenda.next_deadline() == min(later, default=None)
