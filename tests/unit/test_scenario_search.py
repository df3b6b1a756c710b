"""Making a scenario smaller, and comparing several: what is decided without a simulation."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.scenarios.search import fewest
from legion_p2p.scenarios.sweep import combinations, row_of


@given(st.lists(st.integers(0, 40), unique=True, max_size=40), st.data())
def test_what_is_left_is_just_what_is_needed(items, data):
    needed = set(data.draw(st.lists(st.sampled_from(items), max_size=4, unique=True))) if items else set()

    kept = fewest(items, lambda some: needed <= set(some))

    assert kept == [item for item in items if item in needed]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_nothing_that_is_left_can_be_left_out_alone(items):
    def shows(some):
        return sum(some) % 3 == sum(items) % 3 and bool(some)

    kept = fewest(items, shows)

    assert shows(kept)
    assert not any(shows(kept[:i] + kept[i + 1 :]) for i in range(len(kept)))


def test_half_of_the_tries_suffice_where_most_is_not_needed():
    tries = []

    fewest(range(256), lambda some: tries.append(len(some)) or 77 in some)

    assert len(tries) < 40


def test_a_sweep_has_every_combination_the_last_field_first():
    assert combinations({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip


def test_a_row_has_the_means_over_seeds():
    figures = {"goodput": 0.5, "updates_per_shard": 3, "sent_bytes_per_peer_and_s": 9, "n_dead_wrongly": 0, "cpu_s": 1}
    summaries = [
        {**figures, "loss_last": 1.0, "join_median_s": None, "violations": []},
        {**figures, "loss_last": 3.0, "join_median_s": None, "goodput": 1.0, "violations": [{}]},
    ]

    row = row_of({"x": 1}, summaries)

    assert (row.figures["loss_last"], row.figures["goodput"], row.figures["join_median_s"]) == (2.0, 0.75, None)
    assert (row.n_seeds, row.n_violations, row.loss_spread) == (2, 1, 1.414214)
