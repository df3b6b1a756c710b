"""When a shard is taken over, when its round closes, who is sent what."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import Contribution, RoundConfig, Verdict
from legion_p2p.core.shard.life_events import Advanced, Owners
from legion_p2p.core.shard.owner import (
    MAX_AHEAD,
    MAX_SURVIVORS,
    MAX_UPDATES_IN_FLIGHT,
    Claim,
    Claimed,
    Close,
    Delivered,
    Expected,
    Owner,
    OwnerState,
    Release,
    Released,
    Served,
    survivors_to_ask,
)
from legion_p2p.core.wire import Inclusion
from tests.unit.shard.chains import advance, chain_at

ME, A, B, C = (PeerId(name) for name in ("me", "a", "b", "c"))
ALL = RoundConfig(quorum=1.0)


def owns(owner: PeerId | None) -> Owners:
    return Owners(Ownership(owner, None))


def owner_of(*expected: PeerId, version: int = 0, included: tuple[Inclusion, ...] = ()) -> Owner:
    """A peer that owns the shard."""
    made = Owner(ME, chain_at(version, included), ALL)
    made.handle(Expected(expected), 0.0)
    made.handle(owns(ME), 0.0)
    assert made.poll() == Claim()
    made.handle(Claimed(), 0.0)
    return made


def push(owner: Owner, peer: PeerId, seq: int, now: float = 1.0) -> Verdict | None:
    return owner.push(Contribution(peer, seq, 0, 10, now), now)


def close(owner: Owner, now: float = 1.0) -> set[tuple[PeerId, int]]:
    """Close, and make the next version of it, as the service does."""
    closed = owner.close(now)
    assert closed is not None
    included = tuple(Inclusion(c.peer, c.seq) for c in closed.contributions)
    advance(owner._chain, ME, included)
    owner.handle(Advanced(owner._chain.version, -1, included), now)
    return {(c.peer, c.seq) for c in closed.contributions}


def test_a_shard_that_becomes_ours_is_claimed_before_a_round_opens() -> None:
    owner = Owner(ME, chain_at(0), ALL)

    owner.handle(owns(ME), 0.0)
    assert owner.state is OwnerState.CLAIMING and owner.round is None and owner.has_to_change
    assert owner.poll() == Claim() and owner.poll() is None
    assert push(owner, A, 0) is None
    owner.handle(Claimed(), 1.0)

    assert owner.state is OwnerState.OWNER and owner.round is not None and owner.owned_from == 0


def test_what_an_owner_took_is_not_lost_while_it_owns_nothing_for_a_moment() -> None:
    owner = owner_of(A, B)
    push(owner, A, 3)

    owner.handle(owns(C), 2.0)
    assert owner.release() and owner.still_holds() == {A}
    owner.handle(Released(), 2.0)
    owner.handle(owns(ME), 3.0)
    owner.handle(Claimed(), 3.0)

    assert owner.round is not None and [(c.peer, c.seq) for c in owner.round.waiting] == [(A, 3)]


def test_what_an_owner_took_counts_no_longer_once_another_peer_has_made_a_version() -> None:
    owner = owner_of(A, B)
    push(owner, A, 3)
    owner.handle(owns(C), 2.0)
    owner.release()
    owner.handle(Released(), 2.0)

    advance(owner._chain, C, ())
    owner.handle(Advanced(1, -1, (), followed=True), 3.0)
    owner.handle(owns(ME), 3.0)
    owner.handle(Claimed(), 3.0)

    assert owner.still_holds() == set()


def test_a_push_of_a_round_that_came_to_nothing_is_named_by_the_next_version() -> None:
    owner = owner_of(A, B)
    push(owner, A, 3)
    push(owner, B, 3)
    assert owner.close(1.0) is not None

    owner.refused(A, "x" * 1000)
    push(owner, B, 4)
    owner.handle(Expected((B,)), 2.0)
    closed = owner.close(2.0)

    assert closed is not None and [(f.peer, len(f.reason)) for f in closed.failed] == [(A, 200)]


def test_a_shard_that_is_lost_while_it_is_claimed_is_not_owned() -> None:
    owner = Owner(ME, chain_at(0), ALL)
    owner.handle(owns(ME), 0.0)
    owner.poll()

    owner.handle(owns(A), 0.5)
    owner.handle(Claimed(), 1.0)

    assert owner.state is OwnerState.NOT_OWNER and owner.round is None and owner.poll() is None


def test_a_round_closes_when_all_expected_have_pushed() -> None:
    owner = owner_of(A, B)

    assert push(owner, A, 0) is Verdict.ACCEPTED and owner.poll() is None
    push(owner, B, 0)

    assert owner.poll() == Close() and owner.next_deadline() == 0.0
    assert close(owner) == {(A, 0), (B, 0)}
    assert owner.poll() is None and owner.close(1.0) is None


def test_members_that_stop_training_are_not_waited_for() -> None:
    owner = owner_of(A, B)
    push(owner, A, 0)

    owner.handle(Expected((A,)), 2.0)

    assert owner.poll() == Close()


def test_a_contribution_that_an_update_of_another_owner_contains_does_not_count_again() -> None:
    owner = owner_of(A, B)
    push(owner, A, 0)

    owner.handle(Advanced(1, -1, (Inclusion(A, 0),), followed=True), 1.0)

    assert push(owner, A, 0) is Verdict.INCLUDED
    push(owner, B, 0)
    assert owner.round is not None and [c.peer for c in owner.round.waiting] == [B]


def test_what_the_shard_contained_when_it_was_taken_over_does_not_count_again() -> None:
    owner = owner_of(A, version=7, included=(Inclusion(A, 3),))

    assert push(owner, A, 3) is Verdict.INCLUDED and push(owner, A, 4) is Verdict.ACCEPTED


def test_a_shard_that_becomes_anothers_is_released_and_the_round_given_up() -> None:
    owner = owner_of(A)
    push(owner, A, 0)

    owner.handle(owns(B), 1.0)
    assert owner.has_to_change and owner.poll() == Release() and owner.poll() is None
    assert owner.release() and not owner.release()

    assert owner.state is OwnerState.RELEASING and owner.round is None and push(owner, A, 1) is None
    owner.handle(Released(), 2.0)
    assert owner.state is OwnerState.NOT_OWNER and owner.next_deadline() is None


def test_a_shard_that_comes_back_while_it_is_handed_over_is_claimed_after_that() -> None:
    owner = owner_of(A)
    owner.handle(owns(B), 1.0)
    owner.poll()
    owner.release()

    owner.handle(owns(ME), 1.5)
    assert owner.poll() is None
    owner.handle(Released(), 2.0)

    assert owner.poll() == Claim()


def test_following_another_owner_ends_what_was_made_alone() -> None:
    owner = owner_of(A)
    owner.made_tokens = 40

    owner.handle(Advanced(1, -1), 1.0)
    assert owner.made_tokens == 40
    owner.handle(Advanced(2, -1, followed=True), 2.0)

    assert owner.made_tokens == 0


def test_an_update_goes_to_all_members_but_this_one() -> None:
    owner = owner_of(A, B)

    sends = owner.publish(1, (A, B, ME))

    assert {send.peer for send in sends} == {A, B} and {send.version for send in sends} == {1}


def test_a_member_is_sent_no_more_than_so_many_updates_at_a_time() -> None:
    owner = owner_of(A)

    n_sent = [len(owner.publish(version, (A,))) for version in range(1, MAX_UPDATES_IN_FLIGHT + 3)]
    owner.handle(Delivered(A, 4), 1.0)
    n_sent.append(len(owner.publish(MAX_UPDATES_IN_FLIGHT + 3, (A,))))

    assert n_sent == [1] * MAX_UPDATES_IN_FLIGHT + [0, 0, 1]


def test_a_newcomer_that_is_behind_fetches_and_one_that_keeps_up_is_sent_updates() -> None:
    """Four members have contributed for long: they go first, and two of the others at most."""
    old = [PeerId(f"old-{n}") for n in range(4)]
    new = [PeerId(f"new-{n}") for n in range(4)]
    included = (*(Inclusion(peer, 99) for peer in old), *(Inclusion(peer, 0) for peer in new))
    owner = owner_of(*old, version=100, included=included)
    late = new[3]

    owner.handle(Served(late, 90), 0.0)
    first = owner.publish(101, (*old, *new))
    owner.handle(Delivered(late, 101), 0.0)
    second = owner.publish(102, (*old, *new))

    assert late not in {send.peer for send in first} and late in {send.peer for send in second}
    assert {send.peer for send in first if send.goes_first} >= set(old)
    assert sum(send.goes_first for send in first) == 6


def test_of_many_survivors_some_that_have_the_last_update_are_asked_and_some_of_the_rest() -> None:
    ahead = [PeerId(f"ahead-{n}") for n in range(10)]
    rest = [PeerId(f"rest-{n}") for n in range(50)]

    chosen, others = survivors_to_ask(ahead, rest, random.Random(1))

    assert len(chosen) == MAX_AHEAD and set(chosen) <= set(ahead)
    assert len(others) == MAX_SURVIVORS - MAX_AHEAD and set(others) <= set(rest)
    assert survivors_to_ask([], [A], random.Random(1)) == ([], [A])


STEPS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from([A, B, C]), st.integers(0, 6)),
    st.tuples(st.just("own"), st.sampled_from([ME, A, None])),
    st.tuples(st.just("delivered"), st.sampled_from([A, B, C])),
    st.tuples(st.just("followed"), st.sampled_from([A, B, C]), st.integers(0, 6)),
    st.tuples(st.sampled_from(["carry out", "expect A", "expect all", "publish again"])),
)


@given(st.lists(STEPS, max_size=80))
def test_in_any_order_of_events_no_contribution_counts_twice_and_no_update_is_sent_twice(steps) -> None:
    owner, now = Owner(ME, chain_at(0), ALL), 0.0
    owner.handle(Expected((A, B, C)), now)
    counted: Counter[tuple[PeerId, int]] = Counter()
    sent: set[tuple[PeerId, int]] = set()
    in_flight: Counter[PeerId] = Counter()
    accepted: dict[PeerId, int] = {}

    def publish(version: int) -> None:
        for send in owner.publish(version, (A, B, C, ME)):
            assert (send.peer, send.version) not in sent
            sent.add((send.peer, send.version))
            in_flight[send.peer] += 1
            assert in_flight[send.peer] <= MAX_UPDATES_IN_FLIGHT

    for kind, *how in steps:
        now += 1.0
        match kind:
            case "push":
                if push(owner, how[0], how[1], now) is Verdict.ACCEPTED:
                    accepted[how[0]] = how[1]
            case "own":
                owner.handle(owns(how[0]), now)
            case "delivered" if in_flight[how[0]]:
                in_flight[how[0]] -= 1
                owner.handle(Delivered(how[0], owner._chain.version), now)
            case "followed":
                included = (Inclusion(how[0], how[1]),)
                if not owner._chain.includes(how[0], how[1]):
                    counted[how[0], how[1]] += 1
                    advance(owner._chain, A, included)
                    owner.handle(Advanced(owner._chain.version, -1, included, followed=True), now)
            case "expect A":
                owner.handle(Expected((A,)), now)
            case "expect all":
                owner.handle(Expected((A, B, C)), now)
            case "publish again":
                publish(owner._chain.version)
            case "carry out":
                effect = owner.poll()
                if effect == Claim():
                    owner.handle(Claimed(), now)
                elif effect == Release():
                    assert owner.release()
                    accepted.clear()
                    owner.handle(Released(), now)
                elif effect == Close():
                    for peer, seq in close(owner, now):
                        counted[peer, seq] += 1
                    publish(owner._chain.version)
        assert (owner.round is not None) == (owner.state is OwnerState.OWNER) or owner.has_to_change or kind == "own"
        if owner.round is not None:
            waiting = {c.peer: c.seq for c in owner.round.waiting}
            for peer, seq in accepted.items():  # accepted is either waiting, or in a version, or replaced by a newer one
                assert waiting.get(peer, -1) >= seq or owner._chain.includes(peer, seq)
    assert set(counted.values()) <= {1}


@pytest.mark.parametrize("state", ["claiming", "released"])
def test_no_round_is_open_while_it_does_not_own(state: str) -> None:
    owner = owner_of(A)
    owner.handle(owns(B), 1.0)
    owner.poll()
    owner.release()
    if state == "claiming":
        owner.handle(Released(), 2.0)
        owner.handle(owns(ME), 2.0)

    assert owner.round is None and owner.close(3.0) is None and push(owner, A, 9) is None
