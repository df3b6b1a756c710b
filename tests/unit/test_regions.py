"""One peer's choice of its region, look by look."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.coordinates import MAX_COORDINATE_S, Coordinate
from legion_p2p.core.identity import PeerId
from legion_p2p.core.regions import (
    DEFAULTS,
    LABEL_CHARS,
    MAX_RADIUS_S,
    Placed,
    RegionChoice,
    RegionConfig,
    expected_round_s,
    new_label,
    regions_of,
    widened,
)


def at(x_ms: float, y_ms: float = 0.0) -> Coordinate:
    return Coordinate((x_ms / 1000, y_ms / 1000, 0.0, 0.0), 0.001, 0.1)


def members(region: str, n: int, x_ms: float, spread_ms: float = 2.0) -> list[Placed]:
    rng = random.Random(region)
    return [
        Placed(PeerId(f"{region}-{i}"), region, at(x_ms + rng.uniform(-1, 1) * spread_ms, rng.uniform(-1, 1) * spread_ms))
        for i in range(n)
    ]


def looks(choice: RegionChoice, here: Coordinate, others: list[Placed], n: int = 1) -> list[str]:
    """What it announces, look after look, while the others stay as they are."""
    seen = []
    for _ in range(n):
        mine = [Placed(PeerId("me"), choice.region, here)] if choice.region else []
        seen.append(choice.look(here, regions_of([*others, *mine])))
    return seen


def member_of(region: str, config: RegionConfig = DEFAULTS) -> RegionChoice:
    choice = RegionChoice(PeerId("me"), config)
    choice.region = region
    return choice


def settle(placed: list[Placed], config: RegionConfig, n_looks: int, round_s: float = 0.0) -> list[Placed]:
    """All look at the same time, again and again."""
    choices = {p.peer_id: RegionChoice(p.peer_id, config) for p in placed}
    for p in placed:
        choices[p.peer_id].region = p.region
    for _ in range(n_looks):
        regions = regions_of(placed)
        regions_now = [choices[p.peer_id].look(p.coordinate, regions, round_s=round_s) for p in placed]
        placed = [Placed(p.peer_id, region, p.coordinate) for p, region in zip(placed, regions_now, strict=True)]
    return placed


def test_a_newcomer_joins_the_nearest_region():
    others = members("near", 5, 20) + members("far", 5, 40)

    assert looks(RegionChoice(PeerId("me")), at(0), others) == ["near"]


def test_a_newcomer_far_from_all_founds_one():
    seen = looks(RegionChoice(PeerId("me")), at(0), members("far", 5, 80))

    assert seen == [new_label(PeerId("me"), 0)] and len(seen[0]) == LABEL_CHARS


def test_the_first_peer_of_all_founds_a_region_and_stays_in_it():
    seen = looks(RegionChoice(PeerId("me")), at(0), [], 10)

    assert len(set(seen)) == 1


def test_a_region_outlives_its_founder():
    label = new_label(PeerId("gone"), 0)

    assert set(looks(member_of(label), at(0), members(label, 3, 0), 10)) == {label}


def test_all_newcomers_of_one_place_who_come_at_once_end_in_one_region():
    placed = [Placed(PeerId(f"p{i}"), "", at(i)) for i in range(12)]

    assert len({p.region for p in settle(placed, DEFAULTS, 30)}) == 1


def test_a_member_moves_to_a_nearer_region_only_after_several_looks():
    others = members("old", 5, 60) + members("new", 5, 10)

    assert looks(member_of("old"), at(0), others, 4) == ["old"] * (DEFAULTS.patience - 1) + ["new"] * 2


def test_one_look_that_says_otherwise_begins_the_count_anew():
    near, far = members("old", 5, 60) + members("new", 5, 10), members("old", 5, 60) + members("new", 5, 59)
    choice = member_of("old")

    seen = looks(choice, at(0), near, 2) + looks(choice, at(0), far) + looks(choice, at(0), near, 2)

    assert set(seen) == {"old"}


def test_a_region_that_is_only_a_little_nearer_changes_nothing():
    others = members("old", 60, 30) + members("new", 60, 24)

    assert set(looks(member_of("old"), at(0), others, 10)) == {"old"}


def test_a_member_whose_region_is_too_far_founds_one():
    seen = looks(member_of("old"), at(0), members("old", 5, 150), 5)

    assert seen[-1] == new_label(PeerId("me"), 0)


def test_of_two_regions_at_one_place_the_smaller_joins_the_larger():
    placed = settle(members("a", 8, 0) + members("b", 12, 10), DEFAULTS, 6)

    assert {p.region for p in placed} == {"b"}


def test_two_regions_of_one_size_do_not_swap():
    placed = settle(members("a", 6, 0) + members("b", 6, 10), DEFAULTS, 6)

    assert {p.region for p in placed} == {"b"}


def test_regions_that_would_be_too_large_together_stay_apart():
    placed = settle(members("a", 45, 0) + members("b", 45, 10), DEFAULTS, 6)

    assert {p.region for p in placed} == {"a", "b"}


def test_a_lone_peer_joins_a_region_within_reach_and_stays_alone_beyond():
    lone = [Placed(PeerId("lone"), "lone", at(0))]

    near, far = settle(lone + members("a", 5, 80), DEFAULTS, 6), settle(lone + members("a", 5, 120), DEFAULTS, 6)

    assert near[0].region == "a" and far[0].region == "lone"


def test_two_places_are_one_region_where_rounds_are_long_beside_the_way_between_them():
    places = members("west", 2, 0) + members("east", 2, 120)

    short, long = settle(places, DEFAULTS, 6, round_s=0.1), settle(places, DEFAULTS, 6, round_s=1.25)

    assert {p.region for p in short} == {"west", "east"}
    assert len({p.region for p in long}) == 1


def test_a_region_is_left_only_when_rounds_have_become_much_shorter_than_those_it_was_formed_for():
    choice = member_of("old")
    regions = regions_of(members("old", 5, 120))

    longer = [choice.look(at(0), regions, round_s=round_s) for round_s in (0.7, 0.5, 0.4) for _ in range(DEFAULTS.patience)]
    shorter = [choice.look(at(0), regions, round_s=0.25) for _ in range(DEFAULTS.patience)]

    assert set(longer) == {"old"}
    assert shorter[-1] == new_label(PeerId("me"), 0)


def test_rounds_are_as_long_as_their_steps_or_as_what_must_be_sent_by_the_medians_of_what_is_known():
    by_steps = expected_round_s(5, [0.2, 0.0, 0.25, 9.0], 1e6, [0.0, 20e6, 1e9])
    by_rate = expected_round_s(5, [0.02, 0.02, 0.03], 30e6, [20e6, 20e6, 20e6])

    assert by_steps == 5 * 0.25
    assert by_rate == 3.0  # half of the connection is for rounds
    assert expected_round_s(5, [0.0], 1e6, []) == 0.0


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_longer_rounds_never_make_regions_smaller_nor_larger_than_the_longest_radius(a: float, b: float):
    short, long = (widened(DEFAULTS, round_s) for round_s in sorted((a, b)))

    assert DEFAULTS.radius_s <= short.radius_s <= long.radius_s <= MAX_RADIUS_S
    assert short.merge_s <= long.merge_s <= long.radius_s and short.reach_s <= long.reach_s


def test_a_region_that_is_too_large_splits_in_halves_by_place_and_stays_so():
    config = RegionConfig(max_members=40)
    west, east = members("all", 26, 0, 5), [Placed(PeerId(f"east-{i}"), "all", at(25 + i / 10)) for i in range(26)]

    placed = settle(west + east, config, 12)

    halves = regions_of(placed)
    assert sorted(region.size for region in halves.values()) == [26, 26]
    assert len({p.region for p in placed[:26]}) == len({p.region for p in placed[26:]}) == 1


def test_a_region_splits_even_where_all_are_at_the_same_place():
    config = RegionConfig(max_members=10)

    placed = settle([Placed(PeerId(f"p{i}"), "all", at(0)) for i in range(11)], config, 12)

    assert sorted(region.size for region in regions_of(placed).values()) == [5, 6]


def test_a_split_that_not_all_begin_at_the_same_time_is_finished():
    config = RegionConfig(max_members=40)
    placed = members("all", 41, 0, 20)
    choices = {p.peer_id: RegionChoice(p.peer_id, config) for p in placed}
    for choice in choices.values():
        choice.region = "all"
    for _, i in itertools.product(range(8), range(41)):  # each sees what those before it have decided in the same round
        p = placed[i]
        placed[i] = Placed(p.peer_id, choices[p.peer_id].look(p.coordinate, regions_of(placed)), p.coordinate)

    assert min(region.size for region in regions_of(placed).values()) >= 10


def test_a_few_who_lie_about_where_they_are_do_not_move_a_region():
    honest = members("a", 10, 0)
    liars = [Placed(PeerId(f"liar-{i}"), "a", at(5000)) for i in range(4)]

    assert regions_of(honest + liars)["a"].middle.rtt_s(at(0)) < 0.010


positions = st.floats(-1000 * MAX_COORDINATE_S, 1000 * MAX_COORDINATE_S)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), positions, positions), max_size=12),
    st.tuples(positions, positions),
    st.sampled_from(["", "a", "gone"]),
    st.integers(1, 6),
)
def test_whatever_others_announce_a_peer_has_one_region_after_each_look(others, here, region, most):
    placed = [Placed(PeerId(f"p{i}"), label, at(x, y)) for i, (label, x, y) in enumerate(others)]
    choice = member_of(region, RegionConfig(max_members=most))

    seen = looks(choice, at(*here), placed, 5)

    assert all(seen) and choice.region == seen[-1]
