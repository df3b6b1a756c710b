"""Who goes first where there is not enough for all."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.contribution import FEW_ROUNDS, MAX_CONTRIBUTIONS, MIN_NEWCOMERS, established, first
from legion_p2p.core.identity import PeerId

OLD = [PeerId(f"old{i}") for i in range(4)]
NEW = [PeerId(f"new{i:02}") for i in range(20)]


def newest(**counts: int) -> dict[PeerId, int]:
    """How often each has contributed, as the numbers of the newest contributions."""
    return {PeerId(name): count - 1 for name, count in counts.items()}


def test_a_crowd_that_has_just_come_does_not_go_first() -> None:
    numbers = newest(old0=100, old1=100, old2=60, old3=50)

    assert established(OLD + NEW, numbers, 100) == first(OLD + NEW, numbers, 100) == frozenset(OLD)


def test_of_those_who_have_begun_to_contribute_a_few_go_first() -> None:
    numbers = newest(old0=100, old1=100, old2=100, old3=100, new05=9, new07=9, new11=9, new03=2)

    assert first(OLD + NEW, numbers, 100) == {*OLD, NEW[5], NEW[7]}
    assert established(OLD + NEW, numbers, 100) == frozenset(OLD)


def test_in_a_run_that_has_just_begun_all_are_equal() -> None:
    assert established(OLD + NEW, {}, 0) == frozenset(OLD + NEW)
    assert established(OLD + NEW, newest(old0=FEW_ROUNDS), FEW_ROUNDS) == frozenset(OLD + NEW)


def test_a_member_that_has_contributed_for_long_is_as_established_as_one_that_has_for_years() -> None:
    assert established(
        OLD[:2], newest(old0=100 * MAX_CONTRIBUTIONS, old1=MAX_CONTRIBUTIONS // 2), 100 * MAX_CONTRIBUTIONS
    ) == frozenset(OLD[:2])


def test_a_number_that_is_made_up_makes_nobody_more_established_than_a_founder() -> None:
    numbers = newest(old0=100, old1=90, new00=1 << 32)

    assert established([*OLD[:2], NEW[0]], numbers, 100) == {*OLD[:2], NEW[0]}


@given(st.dictionaries(st.sampled_from(OLD + NEW), st.integers(-1, 1 << 40)), st.integers(0, 1 << 32))
def test_established_members_go_first_and_somebody_always_does(numbers: dict[PeerId, int], version: int) -> None:
    settled, going_first = established(OLD + NEW, numbers, version), first(OLD + NEW, numbers, version)

    assert settled and settled <= going_first
    assert len(going_first - settled) <= max(len(settled) // 2, MIN_NEWCOMERS)
