"""How long an update may be, beside those before it."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.update_norms import MAX_KNOWN, MIN_KNOWN, OWNERS_SHARE, TIMES_MEDIAN, UpdateNorms


def norms_of(*values: float) -> UpdateNorms:
    norms = UpdateNorms()
    for value in values:
        norms.add(value)
    return norms


def test_too_few_updates_allow_anything_to_others_and_bound_the_owner() -> None:
    norms = norms_of(*[1.0] * (MIN_KNOWN - 1))

    assert norms.longest is None and norms.owners_longest == OWNERS_SHARE * TIMES_MEDIAN
    assert UpdateNorms().owners_longest is None


def test_the_bound_is_a_few_times_the_median_of_the_newest() -> None:
    norms = norms_of(*[100.0] * 50, *[1.0] * MAX_KNOWN)
    assert norms.longest == TIMES_MEDIAN

    norms.add(1000.0)
    assert norms.longest == TIMES_MEDIAN, "one long update lengthens none"
    norms.replace([2.0] * MIN_KNOWN)
    assert norms.longest == 2 * TIMES_MEDIAN


def test_what_others_say_counts_only_where_little_was_seen() -> None:
    seen, new = norms_of(*[1.0] * MIN_KNOWN), UpdateNorms()

    seen.learn([9.0] * MAX_KNOWN)
    new.learn([9.0] * (MAX_KNOWN + 5))

    assert seen.known() == (1.0,) * MIN_KNOWN and new.known() == (9.0,) * MAX_KNOWN


def test_updates_that_change_nothing_do_not_shrink_it() -> None:
    assert norms_of(*[2.0] * MIN_KNOWN, *[0.0] * MAX_KNOWN).longest == 2.0 * TIMES_MEDIAN


@given(st.lists(st.floats(1e-6, 1e6), min_size=MIN_KNOWN, max_size=40))
def test_what_an_owner_makes_by_the_same_updates_is_never_refused(values: list[float]) -> None:
    norms = norms_of(*values)
    assert norms.owners_longest is not None and norms.longest is not None
    assert norms.owners_longest < norms.longest
