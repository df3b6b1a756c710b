"""Which members own, by how others reach them."""

import random

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.eligible import NEEDED_SHARE, Eligible, eligible, reach_class
from legion_p2p.core.reach import Reach
from legion_p2p.core.roles import Role

PUBLIC, PUNCHABLE, UNKNOWN, RELAYED = Reach.PUBLIC, Reach.PUNCHABLE, Reach.UNKNOWN, Reach.RELAYED


def member(name: str, reach: Reach, weight: float = 1.0, **fields) -> Announcement:
    return Announcement(name, "run", reach=reach, weight=weight, **{"ready": True, **fields})


def owners(*announcements: Announcement) -> Eligible:
    return eligible("run", "home", announcements)


def some(reach: Reach, n: int, weight: float = 1.0) -> list[Announcement]:
    return [member(f"{reach.value} {i}", reach, weight) for i in range(n)]


def test_a_relayed_peer_owns_nothing_while_others_are_enough():
    assert set(owners(*some(PUBLIC, 2), *some(RELAYED, 3)).weights) == {"public 0", "public 1"}
    assert set(owners(*some(PUNCHABLE, 2), *some(RELAYED, 3)).weights) == {"punchable 0", "punchable 1"}


def test_where_nobody_can_be_reached_directly_all_own():
    assert set(owners(*some(RELAYED, 3)).weights) == {"relayed 0", "relayed 1", "relayed 2"}


def test_one_of_which_nothing_is_known_owns_only_where_those_that_are_known_are_too_weak():
    assert set(owners(*some(PUBLIC, 1), *some(UNKNOWN, 3), *some(RELAYED, 3)).weights) == {"public 0"}
    assert set(owners(*some(UNKNOWN, 3), *some(RELAYED, 3)).weights) == {"unknown 0", "unknown 1", "unknown 2"}


def test_relayed_peers_are_added_until_the_owners_weigh_enough():
    crowd = owners(*some(PUBLIC, 1), *some(RELAYED, 23))

    assert "public 0" in crowd.weights and len(crowd.weights) == 24 * NEEDED_SHARE
    assert set(owners(*some(PUBLIC, 1, weight=4.0), *some(RELAYED, 23)).weights) == {"public 0"}


def test_whoever_owns_everything_has_others_that_stand_by():
    assert set(owners(*some(PUBLIC, 1), *some(RELAYED, 2)).reserve) == {"relayed 0", "relayed 1"}
    assert owners(*some(PUBLIC, 2), *some(RELAYED, 2)).reserve == {}


def test_a_trainer_by_choice_owns_however_it_is_reached_and_a_client_never():
    assert set(owners(*some(PUBLIC, 1), member("t", RELAYED, role=Role.TRAINER)).weights) == {"public 0", "t"}
    assert set(owners(member("c", PUBLIC, role=Role.CLIENT), *some(RELAYED, 1)).weights) == {"relayed 0"}
    assert owners(member("c", PUBLIC, role=Role.CLIENT)) == Eligible()


def test_whoever_is_not_ready_or_weighs_nothing_owns_nothing_and_is_not_counted():
    assert owners(member("a", PUBLIC, ready=False), member("b", PUBLIC, 0.0)) == Eligible()


crowds = st.lists(
    st.builds(
        member,
        st.sampled_from([f"p{i}" for i in range(40)]),
        st.sampled_from(Reach),
        st.sampled_from([0.0, 0.1, 1.0, 10.0]),
        ready=st.booleans(),
        role=st.sampled_from(Role),
    ),
    max_size=30,
    unique_by=peer_of,
)


@given(crowds, st.integers(0, 99))
def test_all_members_come_to_the_same_owners_and_these_are_enough_and_the_best(crowd, seed):
    shuffled = list(crowd)
    random.Random(seed).shuffle(shuffled)
    able = {peer_of(a): a for a in crowd if a.ready and a.weight > 0 and a.role is not Role.CLIENT}

    found = owners(*crowd)

    assert found == owners(*shuffled)
    assert bool(found.weights) == bool(able)
    assert all(able[peer].weight == weight for peer, weight in {**found.weights, **found.reserve}.items())
    total = sum(a.weight for a in able.values())
    assert sum(found.weights.values()) >= NEEDED_SHARE * total * (1 - 1e-9)
    idle = [reach_class(a) for peer, a in able.items() if peer not in found.weights]
    assert max((reach_class(able[peer]) for peer in found.weights), default=0) <= min(idle, default=9)


@given(st.lists(st.sampled_from(Reach), min_size=2, max_size=30), st.data())
def test_one_that_comes_or_goes_makes_one_other_eligible_at_most_while_its_class_is_not_the_only_one(reaches, data):
    crowd = [member(f"p{i}", reach) for i, reach in enumerate(reaches)]
    gone = data.draw(st.sampled_from(crowd))
    rest = [a for a in crowd if a is not gone]
    best = min(map(reach_class, crowd))

    before, after = set(owners(*crowd).weights), set(owners(*rest).weights)

    if min(map(reach_class, rest)) == best:
        assert len((before ^ after) - {gone.peer_id}) <= 1
