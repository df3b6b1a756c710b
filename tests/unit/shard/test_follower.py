"""Whose versions are taken over, and who is asked for what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.shard.belief import (
    MAX_VERSION_JUMP,
    Adoption,
    differs_from_most,
    have_reached,
    is_behind_most,
    judge_whole,
    may_make,
    most_hold,
    outvoted_by,
)
from legion_p2p.core.shard.follower import MAX_CLAIM_PAUSE_S, MAX_CLAIMS, OUTVOTED_S, Follower, FollowerState
from legion_p2p.core.shard.follower_events import (
    Announced,
    AskBegun,
    AskEnded,
    Fetch,
    FetchEnded,
    Outvoted,
    Parted,
    Shown,
    TurnedAway,
    Unreachable,
)
from legion_p2p.core.shard.life_events import Advanced, Owners
from tests.unit.shard.chains import OWNER, advance, chain_at, digest_of, mark

ME, OTHER, LIAR = (PeerId(name) for name in ("me", "other", "liar"))
ANNOUNCE_S = 2.0


def follower_at(version: int, owner: PeerId | None = OWNER) -> Follower:
    made = Follower(ME, chain_at(version), ANNOUNCE_S)
    made.handle(Owners(Ownership(owner, None)), 0.0)
    return made


def asked(follower: Follower, now: float) -> PeerId | None:
    follower.handle_timeout(now)
    fetch = follower.poll()
    return None if fetch is None else fetch.peer


def test_an_owner_that_is_ahead_is_asked_only_if_its_update_does_not_come() -> None:
    follower = follower_at(3)

    follower.handle(Announced(OWNER, mark(4)), 10.0)

    assert asked(follower, 10.0) is None and follower.next_deadline() == 10.0 + ANNOUNCE_S
    assert asked(follower, 10.0 + ANNOUNCE_S) == OWNER and follower.state is FollowerState.FETCHING


def test_an_update_that_comes_saves_the_question() -> None:
    follower = follower_at(3)
    follower.handle(Announced(OWNER, mark(4)), 10.0)

    advance(follower._chain)
    follower.handle(Advanced(4, -1), 11.0)

    assert follower.next_deadline() is None and asked(follower, 100.0) is None


def test_a_member_that_is_always_one_version_behind_is_patient_with_each_of_them() -> None:
    follower = follower_at(3)

    for n in range(5):
        follower.handle(Announced(OWNER, mark(4 + n)), 10.0 + n)
        assert asked(follower, 10.5 + n) is None
        advance(follower._chain)
        follower.handle(Advanced(4 + n, -1), 10.9 + n)

    assert follower.state is FollowerState.CURRENT


def test_an_owner_on_another_chain_is_asked_at_once() -> None:
    follower = follower_at(3)

    follower.handle(Announced(OWNER, mark(3, "other ")), 10.0)

    assert asked(follower, 10.0) == OWNER


def test_an_owner_whom_most_of_the_others_do_not_follow_follows_them_after_a_while() -> None:
    follower = follower_at(3, owner=ME)
    theirs = mark(3, "other ")

    follower.handle(Outvoted(theirs), 10.0)
    follower.handle(Announced(OTHER, theirs), 10.0)
    assert asked(follower, 10.0) is None and follower.next_deadline() == 10.0 + OUTVOTED_S

    assert asked(follower, 10.0 + OUTVOTED_S) == OTHER


def test_an_owner_stays_where_the_others_came_over_in_time_or_only_one_of_them_is_elsewhere() -> None:
    follower = follower_at(3, owner=ME)
    theirs = mark(3, "other ")
    follower.handle(Outvoted(theirs), 10.0)
    follower.handle(Announced(OTHER, theirs), 10.0)

    follower.handle(Outvoted(None), 20.0)
    follower.handle(Announced(LIAR, theirs), 20.0)

    assert asked(follower, 1000.0) is None


def test_who_is_outvoted_by_what() -> None:
    chain, theirs = chain_at(3), mark(3, "other ")

    assert outvoted_by(chain, [theirs, theirs, mark(3)]) == theirs
    assert outvoted_by(chain, [theirs, mark(3)]) is None, "one of two"
    assert outvoted_by(chain, [mark(3), mark(3), theirs]) is None, "it is a part of this chain"
    assert outvoted_by(chain, [mark(9), mark(9)]) is None, "ahead, not elsewhere"
    assert outvoted_by(chain, []) is None and outvoted_by(chain, [None, None]) is None


@pytest.mark.parametrize("version", [2, 3, 4, 1000])
def test_another_member_is_not_asked_by_a_member_whatever_it_claims(version: int) -> None:
    follower = follower_at(3)

    follower.handle(Announced(OTHER, mark(version, "other ")), 10.0)

    assert asked(follower, 100.0) is None and follower.next_deadline() is None


def test_an_owner_asks_a_member_that_claims_to_be_ahead_at_once() -> None:
    follower = follower_at(3, owner=ME)

    follower.handle(Announced(OTHER, mark(3, "other ")), 10.0)
    assert asked(follower, 10.0) is None, "its own chain prevails"
    follower.handle(Announced(OTHER, mark(4)), 10.0)

    assert asked(follower, 10.0) == OTHER


def test_what_was_claimed_before_a_peer_became_the_owner_counts_from_then_on() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Announced(OTHER, mark(4)), 10.0)
    follower.handle(Owners(Ownership(OTHER, None)), 10.0)

    assert follower.poll() == Fetch(OTHER)


def test_one_is_asked_at_a_time() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Announced(OTHER, mark(4)), 10.0)
    assert follower.poll() == Fetch(OTHER)

    follower.handle(Announced(LIAR, mark(9)), 10.0)
    follower.handle(Shown(LIAR, proved=True), 10.0)
    assert follower.poll() is None
    follower.handle(FetchEnded(OTHER, came_forward=False), 11.0)

    assert follower.poll() == Fetch(LIAR)


def test_a_claim_that_came_to_nothing_is_looked_at_more_and_more_rarely() -> None:
    follower, now, pauses = follower_at(3, owner=ME), 0.0, []
    for _ in range(8):
        follower.handle(Announced(LIAR, mark(9)), now)
        assert follower.poll() == Fetch(LIAR)
        follower.handle(FetchEnded(LIAR, came_forward=False), now)
        assert follower.poll() is None
        deadline = follower.next_deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
        follower.handle_timeout(now)

    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0] and pauses[-1] == MAX_CLAIM_PAUSE_S


def test_a_peer_whose_word_is_believed_is_asked_again_after_the_shortest_pause() -> None:
    follower, now = follower_at(3), 0.0
    follower.handle(Announced(OWNER, mark(3, "other ")), now)
    for _ in range(5):
        assert follower.poll() == Fetch(OWNER)
        follower.handle(FetchEnded(OWNER, came_forward=False, trusted=True), now)
        assert follower.next_deadline() == now + ANNOUNCE_S
        now += ANNOUNCE_S
        follower.handle_timeout(now)


def test_a_claim_that_held_ends_the_pauses() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Announced(OTHER, mark(5)), 0.0)
    follower.poll()
    follower.handle(FetchEnded(OTHER, came_forward=False), 0.0)
    assert asked(follower, 2.0) == OTHER

    advance(follower._chain)
    follower.handle(FetchEnded(OTHER, came_forward=True), 2.0)

    assert asked(follower, 2.0) == OTHER, "it has one more"
    advance(follower._chain)
    follower.handle(FetchEnded(OTHER, came_forward=True), 2.0)
    assert asked(follower, 100.0) is None and follower._claims == {}


def test_a_liar_does_not_keep_an_honest_member_from_being_asked() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Announced(LIAR, mark(1000)), 0.0)
    assert follower.poll() == Fetch(LIAR)
    follower.handle(FetchEnded(LIAR, came_forward=False), 0.0)
    follower.handle(Announced(OTHER, mark(4)), 50.0)

    assert follower.poll() == Fetch(OTHER)


def test_a_busy_peer_is_asked_when_it_said() -> None:
    follower = follower_at(3)
    follower.handle(Announced(OWNER, mark(3, "other ")), 0.0)
    follower.poll()

    follower.handle(TurnedAway(OWNER, 7.5), 1.0)

    assert asked(follower, 8.4) is None and asked(follower, 8.5) == OWNER


def test_a_peer_that_is_being_asked_anyway_is_not_asked_twice() -> None:
    follower = follower_at(3)
    for event in (AskBegun(OWNER), AskBegun(OWNER), Announced(OWNER, mark(3, "other ")), AskEnded(OWNER)):
        follower.handle(event, 0.0)
    assert asked(follower, 1.0) is None

    follower.handle(AskEnded(OWNER), 2.0)

    assert asked(follower, 2.0) == OWNER


def test_a_peer_out_of_reach_is_not_asked_over_and_over() -> None:
    follower = follower_at(3)
    follower.handle(Announced(OWNER, mark(3, "other ")), 0.0)
    follower.poll()

    follower.handle(Unreachable(OWNER), 1.0)

    assert asked(follower, 1.0) is None and asked(follower, 1.0 + ANNOUNCE_S) == OWNER


@pytest.mark.parametrize("proved", [False, True])
def test_what_a_message_shows_counts_unless_its_sender_showed_nothing_the_last_time(proved: bool) -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Shown(OTHER), 0.0)
    assert follower.poll() == Fetch(OTHER)
    follower.handle(FetchEnded(OTHER, came_forward=False), 0.0)

    follower.handle(Shown(OTHER, proved), 1.0)

    assert (follower.poll() is not None) is proved


def test_a_member_that_is_no_longer_ready_claims_nothing() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Announced(OTHER, mark(9)), 0.0)
    follower.poll()
    follower.handle(FetchEnded(OTHER, came_forward=False), 0.0)

    follower.handle(Announced(OTHER, None), 1.0)

    assert asked(follower, 100.0) is None


def test_in_another_region_old_claims_are_forgotten() -> None:
    follower = follower_at(3)
    follower.handle(Announced(OWNER, mark(3, "other ")), 0.0)

    follower.forget()
    follower.handle(Owners(Ownership(OTHER, None)), 0.0)

    assert follower.state is FollowerState.CURRENT and asked(follower, 100.0) is None


def test_claims_of_more_members_than_are_remembered_are_forgotten_the_oldest_first() -> None:
    follower = follower_at(3, owner=ME)

    for n in range(MAX_CLAIMS + 10):
        follower.handle(Announced(PeerId(f"liar-{n:04}"), mark(9)), 0.0)

    assert len(follower._claims) == MAX_CLAIMS and PeerId("liar-0000") not in follower._claims


@pytest.mark.parametrize(
    ("peer", "owner", "standby", "made_by", "owner_is_alive", "may"),
    [
        (OWNER, OWNER, OTHER, None, True, True),
        (OTHER, OWNER, LIAR, OTHER, True, True),  # it made what is held
        (OTHER, OWNER, OTHER, None, True, False),
        (OTHER, OWNER, OTHER, None, False, True),  # the owner is silent
        (OTHER, None, OTHER, None, False, False),
        (OTHER, ME, OTHER, None, False, False),
        (LIAR, OWNER, OTHER, OWNER, False, False),
        (ME, OWNER, OTHER, None, True, True),
    ],
)
def test_whose_versions_are_followed(peer, owner, standby, made_by, owner_is_alive, may) -> None:
    assert may_make(ME, peer, Ownership(owner, standby), made_by, owner_is_alive) is may


def test_more_than_half_hold_it() -> None:
    a, b = mark(4), mark(4, "other ")

    assert most_hold(a, [a, a, b]) and not most_hold(a, [a, b]) and not most_hold(b, [a, a, b])
    assert not most_hold(None, [None, None, a])


@pytest.mark.parametrize(
    ("version", "branch", "is_ancestor", "owns", "made_tokens", "adoption"),
    [
        (4, "", True, False, 0, Adoption.TAKE),
        (4, "", False, False, 0, Adoption.TAKE),
        (4, "other ", False, False, 10, Adoption.MERGE),
        (4, "", True, False, 10, Adoption.TAKE),  # what we made is in it
        (4, "other ", False, True, 10, Adoption.OURS_PREVAILS),
        (4, "", True, True, 0, Adoption.TAKE),
        (3, "", False, False, 10, Adoption.KNOWN),
        (3, "", True, True, 10, Adoption.KNOWN),
        (3 + MAX_VERSION_JUMP, "", True, False, 0, Adoption.TAKE),
        (4 + MAX_VERSION_JUMP, "", True, False, 0, Adoption.IMPOSSIBLE),
    ],
)
def test_what_is_done_with_a_whole_shard(version, branch, is_ancestor, owns, made_tokens, adoption) -> None:
    judged = judge_whole(
        chain_at(3), version, digest_of(version, branch), is_ancestor=is_ancestor, owns=owns, made_tokens=made_tokens
    )

    assert judged is adoption


PEERS = [OWNER, OTHER, LIAR]
STEPS = st.one_of(
    st.tuples(st.just("announce"), st.sampled_from(PEERS), st.integers(0, 8), st.sampled_from(["", "other "])),
    st.tuples(st.just("shown"), st.sampled_from(PEERS), st.booleans()),
    st.tuples(st.just("own"), st.sampled_from([*PEERS, ME, None])),
    st.tuples(st.sampled_from(["advance", "nothing", "forward", "busy", "unreachable"])),
)


@given(st.lists(st.tuples(STEPS, st.sampled_from([0.0, 0.5, 2.0, 60.0])), max_size=50))
def test_in_any_order_of_events_one_peer_is_asked_at_a_time_and_never_before_its_pause_is_over(steps) -> None:
    follower, now = follower_at(2), 0.0
    asking: PeerId | None = None
    not_before: dict[PeerId, float] = {}
    proved: set[PeerId] = set()
    for (kind, *how), passed in steps:
        now += passed
        match kind:
            case "announce":
                follower.handle(Announced(how[0], mark(how[1], how[2])), now)
            case "shown":
                follower.handle(Shown(how[0], how[1]), now)
                if how[1]:
                    proved.add(how[0])
            case "own":
                follower.handle(Owners(Ownership(how[0], None)), now)
            case "advance":
                advance(follower._chain)
                follower.handle(Advanced(follower._chain.version, -1), now)
            case _ if asking is not None:
                peer, asking = asking, None
                proved.discard(peer)
                if kind == "forward":
                    advance(follower._chain)
                    not_before.pop(peer, None)
                    follower.handle(FetchEnded(peer, came_forward=True), now)
                elif kind == "nothing":
                    follower.handle(FetchEnded(peer, came_forward=False), now)
                    not_before[peer] = now + ANNOUNCE_S
                elif kind == "busy":
                    follower.handle(TurnedAway(peer, 7.0), now)
                    not_before[peer] = now + 7.0
                else:
                    follower.handle(Unreachable(peer), now)
                    not_before[peer] = now + ANNOUNCE_S
        follower.handle_timeout(now)
        if (fetch := follower.poll()) is not None:
            assert asking is None and fetch.peer != ME
            assert now >= not_before.get(fetch.peer, 0.0) or fetch.peer in proved
            asking = fetch.peer
        assert (follower.state is FollowerState.FETCHING) == (asking is not None)
        deadline = follower.next_deadline()
        assert deadline is None or deadline > now, "what is due is done"


def test_a_peer_is_behind_most_where_more_than_half_announce_a_newer_version() -> None:
    chain = chain_at(3)

    assert is_behind_most(chain, [mark(4), mark(5), mark(3)])
    assert not is_behind_most(chain, [mark(4), mark(3)]) and not is_behind_most(chain, [None, None, mark(4)])
    assert not is_behind_most(chain, [])


def test_a_peer_cannot_judge_an_owner_where_half_announce_what_it_does_not_hold() -> None:
    chain = chain_at(3)

    assert differs_from_most(chain, [mark(4), mark(3)]) and differs_from_most(chain, [mark(3, "other"), mark(3)])
    assert not differs_from_most(chain, [mark(3), mark(3), mark(4)])
    assert not differs_from_most(chain, [None, mark(3)]), "one that says nothing contradicts nothing"
    assert differs_from_most(chain, []), "of two members one has to follow the other"


def test_an_owner_is_outvoted_by_others_that_go_on_meanwhile_as_by_others_that_stand_still() -> None:
    follower = follower_at(3, owner=ME)

    for now, theirs in ((10.0, mark(3, "other ")), (25.0, mark(3, "third "))):
        follower.handle(Outvoted(theirs), now)
        follower.handle(Announced(OTHER, theirs), now)

    assert asked(follower, 10.0 + OUTVOTED_S - 1) is None
    assert asked(follower, 10.0 + OUTVOTED_S) == OTHER


def test_a_state_is_reached_by_those_that_hold_it_or_went_on_and_not_by_those_that_hold_another() -> None:
    state = mark(3)

    assert have_reached(state, [mark(3), mark(4), mark(2)])
    assert not have_reached(state, [mark(3, "other "), mark(3, "other "), mark(3)])
    assert not have_reached(state, [mark(3), None]) and not have_reached(state, [])


def test_an_owner_that_most_others_are_ahead_of_elsewhere_follows_them_after_a_while() -> None:
    follower = follower_at(3, owner=ME)
    for now in (10.0, 12.0, 20.0):
        follower.handle(Parted(), now)
        assert not follower.is_left_alone(now)

    follower.handle(Parted(), 10.0 + OUTVOTED_S)

    assert follower.is_left_alone(10.0 + OUTVOTED_S)
    follower.handle(Advanced(4, -1), 50.0)
    assert not follower.is_left_alone(1000.0), "what it holds now has to be looked at again"


def test_an_owner_does_not_count_the_time_in_which_others_were_not_seen_elsewhere() -> None:
    follower = follower_at(3, owner=ME)
    follower.handle(Parted(), 10.0)
    follower.handle(Parted(), 1000.0)

    assert not follower.is_left_alone(1000.0 + OUTVOTED_S - 1) and follower.is_left_alone(1000.0 + OUTVOTED_S)
