"""Whose word deposes an owner that makes no progress, and for how long."""

import msgspec

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.claims import FIRST_CLAIM_S, MAX_CLAIM_S, MAX_CLAIMS, MAX_NAMED, TimedClaims
from legion_p2p.core.identity import PeerId
from legion_p2p.core.stalls import deposed

A, B, C, D = (PeerId(name) for name in "abcd")


def says(peer: PeerId, *stalled: PeerId, training: bool = True, ready: bool = True) -> Announcement:
    return Announcement(peer, "run", ready=ready, training=training, stalled=stalled)


def test_more_than_half_of_the_others_that_train_depose_an_owner() -> None:
    assert deposed([says(A), says(B, A), says(C, A), says(D)]) == {A}
    assert deposed([says(A), says(B, A), says(C), says(D)]) == frozenset()
    assert deposed([says(A), says(B, A), says(C, A), says(D), says(PeerId("e"))]) == frozenset()


def test_of_two_that_train_one_deposes_the_other() -> None:
    assert deposed([says(A), says(B, A)]) == {A}


def test_nobody_deposes_itself_and_nobody_counts_twice() -> None:
    assert deposed([says(A, A), says(B, A, A), says(C), says(D)]) == frozenset()


def test_members_that_do_not_train_have_no_say() -> None:
    quiet = [says(PeerId(f"q{i}"), A, training=False) for i in range(50)]
    unready = [says(PeerId(f"u{i}"), A, ready=False) for i in range(50)]
    assert deposed([says(A), says(B), says(C), *quiet, *unready]) == frozenset()


def test_an_owner_that_trains_nothing_can_be_deposed() -> None:
    assert deposed([says(A, training=False), says(B, A), says(C, A), says(D)]) == {A}
    assert deposed([says(A, training=False), says(B, A), says(C), says(D)]) == frozenset()


def test_a_claim_ends_and_lasts_twice_as_long_the_next_time() -> None:
    claims = TimedClaims()
    now, lasted = 0.0, []
    for _ in range(9):
        assert claims.found(A, now) and not claims.found(A, now + 1.0)
        end = now
        while claims.named(end):
            end += 1.0
        lasted.append(end - now)
        now = end + 10.0

    assert lasted[:3] == [FIRST_CLAIM_S, 2 * FIRST_CLAIM_S, 4 * FIRST_CLAIM_S] and lasted[-1] == MAX_CLAIM_S
    assert claims.found(A, now + 2 * MAX_CLAIM_S)
    assert not claims.named(now + 2 * MAX_CLAIM_S + FIRST_CLAIM_S), "what was long ago counts no more"


def test_few_owners_are_named_and_few_remembered() -> None:
    claims = TimedClaims()
    for i in range(3 * MAX_CLAIMS):
        claims.found(PeerId(f"p{i:04}"), 0.0)

    assert len(claims.named(1.0)) == MAX_NAMED
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(says(A, *claims.named(1.0))), type=Announcement).stalled
