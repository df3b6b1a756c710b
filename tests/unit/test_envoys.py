"""By which members other regions know a region, and what is in the table of them."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.envoys import (
    HEARS_OF_NOBODY,
    MAX_ENVOYS_KEPT,
    MAX_FAR_GROWN,
    N_ENVOYS,
    envoys,
    far_grown,
    sizes,
)
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Changed, Liveness
from legion_p2p.core.membership import Membership, MembershipConfig

ME = PeerId("me")
CONFIG = MembershipConfig()


def member(name: str, region: str = "here", **says: object) -> Announcement:
    return Announcement(name, "run", region=region, ready=True, **says)  # type: ignore[arg-type]


def far(name: str, region: str = "there", **says: object) -> Announcement:
    return member(name, region, envoy=True, **says)


def table_in(region: str = "here", *announcements: Announcement) -> Membership:
    table = Membership(ME, CONFIG, 0.0)
    table.moved(region)
    for announcement in announcements:
        table.announced(announcement, 0.0)
    return table


def known(table: Membership) -> set[str]:
    return {m.peer_id for m in table.members()}


@given(st.lists(st.sampled_from("ABCDEFGHIJKL"), unique=True), st.randoms())
def test_all_that_see_the_same_members_come_to_the_same_few_envoys(names: list[str], random: object) -> None:
    members = [member(name) for name in names]
    found = envoys(members)
    random.shuffle(members)  # type: ignore[attr-defined]

    assert envoys(members) == found and len(found) == min(N_ENVOYS, len(names))
    assert found <= {peer_of(a) for a in members}


def test_a_newcomer_that_does_not_hold_the_model_speaks_for_nobody() -> None:
    assert envoys([Announcement("A", "run", region="here")]) == frozenset()


def test_of_other_regions_only_envoys_are_in_the_table_and_those_that_are_in_none_yet() -> None:
    table = table_in("here", member("A"), member("B", "there"), far("C"), member("D", ""))

    assert known(table) == {"A", "C", "D"}


def test_one_that_is_no_envoy_any_more_is_forgotten_and_so_is_one_that_moves_away() -> None:
    table = table_in("here", member("A"), far("C"))

    news = [table.announced(member("A", "there", seq=1), 1.0), table.announced(member("C", "there", seq=1), 1.0)]

    assert news == [True, True] and known(table) == set()


def test_a_peer_that_moves_keeps_of_its_old_region_the_envoys() -> None:
    table = table_in("here", member("A"), member("B", envoy=True), far("C"), far("D"))

    table.moved("there")

    assert known(table) == {"B", "C", "D"}
    assert [m.peer_id for m in table.here()] == ["C", "D"]


def test_anybody_may_claim_to_be_an_envoy_and_no_more_are_kept_than_change_at_once() -> None:
    table = table_in("here", *(far(f"E{i}") for i in range(3 * MAX_ENVOYS_KEPT)), *(member(f"M{i}") for i in range(50)))

    assert sum(name.startswith("E") for name in known(table)) == MAX_ENVOYS_KEPT
    assert sum(name.startswith("M") for name in known(table)) == 50
    assert table.n_refused == 2 * MAX_ENVOYS_KEPT


def test_of_many_envoys_a_silent_one_is_forgotten_and_nobody_asks_whether_it_lives() -> None:
    envoys_there = [far(f"E{r}-{i}", f"region-{r}") for r in range(5) for i in range(N_ENVOYS)]
    table = table_in("here", *envoys_there)
    silent, *others = envoys_there
    while table.poll() is not None:
        pass

    silent_s = CONFIG.suspect_after_s * table.far_grown
    now = 0.0
    while now < silent_s + 1:
        now += 1.0
        for other in others:
            table.lives(peer_of(other), now)
        table.handle_timeout(now)
    effects = []
    while (effect := table.poll()) is not None:
        effects.append(effect)

    assert known(table) == {other.peer_id for other in others}
    assert effects == [Changed(peer_of(silent), Liveness.ALIVE, None)]


def test_what_a_peer_says_of_its_region() -> None:
    table = table_in("here", member("A", done=True), member("B", done=True), far("C", done=False))

    done = table.own_part(member("me", done=True))
    alone = table_in("here").own_part(member("me"))

    assert (done.region_size, done.region_done, done.envoy) == (3, True, True)
    assert (alone.region_size, alone.region_done, alone.envoy) == (1, False, True)
    assert not table.own_part(Announcement("me", "run", region="here")).envoy


def test_a_region_is_as_large_as_most_of_its_envoys_say_and_no_smaller_than_known() -> None:
    said = [far("C", region_size=40), far("D", region_size=41), far("E", region_size=9999), member("A"), member("B")]

    assert sizes(said) == {"there": 41, "here": 2}


@given(st.integers(0, 5000))
def test_envoys_are_heard_the_more_rarely_the_more_they_are(n: int) -> None:
    assert 1 <= far_grown(n) <= MAX_FAR_GROWN
    assert n == 0 or far_grown(n) <= far_grown(n + 1)
    assert far_grown(0) == HEARS_OF_NOBODY


def test_one_that_was_let_go_is_not_taken_back_from_others_that_still_have_what_it_said() -> None:
    demoted, moved, missed = far("A", seq=3), member("B", seq=3), far("C", region_size=64, seq=3)
    table = table_in("here", demoted, moved, missed)

    table.announced(member("A", "there", seq=4), 1.0)
    table.announced(member("B", "there", seq=4), 1.0)
    now = 1.0
    while now < 200.0:
        now += 1.0
        table.handle_timeout(now)
    assert known(table) == set()

    for old in (demoted, moved, missed):
        table.announced(old, now, direct=False)
    assert known(table) == set()
    for newer in (far("A", seq=9), member("B", seq=9), far("C", seq=9)):
        table.announced(newer, now, direct=False)
    assert known(table) == {"A", "B", "C"}


def test_a_peer_that_moves_learns_of_those_that_it_had_let_go() -> None:
    table = table_in("here", member("A", seq=1))
    table.announced(member("A", "there", seq=2), 1.0)

    table.moved("there")
    table.announced(member("A", "there", seq=2), 2.0, direct=False)

    assert known(table) == {"A"}
