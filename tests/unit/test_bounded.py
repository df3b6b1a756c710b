"""A map that cannot outgrow its limit."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.bounded import BoundedMap


def filled(limit: int, *keys: str) -> BoundedMap[str, int]:
    bounded: BoundedMap[str, int] = BoundedMap(limit)
    for number, key in enumerate(keys):
        bounded[key] = number
    return bounded


def test_the_oldest_entry_goes_where_there_is_no_room() -> None:
    assert list(filled(2, "a", "b", "c")) == ["b", "c"]


def test_an_entry_that_is_set_again_is_the_newest() -> None:
    assert list(filled(2, "a", "b", "a", "c")) == ["a", "c"]


def test_reading_does_not_keep_an_entry_unless_it_is_touched() -> None:
    read, touched = filled(2, "a", "b"), filled(2, "a", "b")

    assert read["a"] == 0
    touched.touch("a")
    read["c"] = touched["c"] = 2

    assert list(read) == ["b", "c"] and list(touched) == ["a", "c"]
    with pytest.raises(KeyError):
        touched.touch("b")


def test_entries_whose_time_is_over_are_dropped_up_to_the_first_that_stays() -> None:
    bounded = filled(9, "a", "b", "c")
    bounded["late"] = 0

    bounded.drop_while(lambda at: at < 2)

    assert list(bounded) == ["c", "late"]
    bounded.drop_while(lambda at: True)
    assert not bounded


def test_no_way_of_adding_goes_past_the_limit() -> None:
    bounded = filled(2)

    assert bounded.setdefault("a", 1) == 1
    bounded.update({"b": 2, "c": 3})
    bounded |= {"d": 4}

    assert dict(bounded) == {"c": 3, "d": 4}


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_it_holds_the_entries_that_were_set_last(limit: int, steps: list[tuple[int, bool]]) -> None:
    bounded: BoundedMap[int, int] = BoundedMap(limit)
    model: OrderedDict[int, int] = OrderedDict()

    for number, (key, is_set) in enumerate(steps):
        if is_set:
            bounded[key] = number
            model.pop(key, None)
            model[key] = number
            model = OrderedDict(list(model.items())[-limit:])
        else:
            assert bounded.pop(key, None) == model.pop(key, None)
        assert list(bounded.items()) == list(model.items()) and len(bounded) <= limit
