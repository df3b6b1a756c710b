"""When a peer looks for members that are unknown to it."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.looks import FIRST_LOOKS_S, MAX_PERIODS, LookPlan


def settled(period_s: float = 30.0) -> LookPlan:
    plan = LookPlan(period_s)
    assert [plan.next_s() for _ in FIRST_LOOKS_S] == list(FIRST_LOOKS_S)
    return plan


def looks(plan: LookPlan, n_periods: int, *, misses: bool = False, found: bool = False) -> list[int]:
    """The periods after which it looks."""
    when = []
    for period in range(1, n_periods + 1):
        assert plan.next_s() == 30.0
        if plan.is_due(misses=misses):
            when.append(period)
            plan.looked(found=found)
    return when


def test_a_peer_that_has_just_joined_looks_three_times_within_seconds() -> None:
    plan = LookPlan(30.0)
    for wait_s in FIRST_LOOKS_S:
        assert plan.next_s() == wait_s and plan.is_due(misses=False)
        plan.looked(found=False)
    assert plan.next_s() == 30.0 and plan.is_due(misses=False)


def test_looks_that_find_nobody_become_rarer() -> None:
    assert looks(settled(), 15) == [1, 3, 7, 11, 15]


def test_while_looks_find_somebody_or_somebody_is_missed_there_is_one_each_period() -> None:
    assert looks(settled(), 5, found=True) == [1, 2, 3, 4, 5]
    assert looks(settled(), 5, misses=True) == [1, 2, 3, 4, 5]


def test_a_member_that_dies_is_looked_for_after_the_period_that_has_begun() -> None:
    plan = settled()
    assert looks(plan, 8) == [1, 3, 7]

    assert looks(plan, 2, misses=True) == [1, 2]


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_no_pause_is_longer_than_the_longest(happened: list[tuple[bool, bool]]) -> None:
    plan, waited = settled(), 0
    for misses, found in happened:
        plan.next_s()
        waited += 1
        if plan.is_due(misses=misses):
            plan.looked(found=found)
            waited = 0
        assert waited < MAX_PERIODS
