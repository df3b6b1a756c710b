"""Who was away, decided from what is seen: no network, no clock."""

import pytest

from legion_p2p.core import absence
from legion_p2p.core.absence import PROBATION_S, Absence
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId

PATIENCE_S = 7.5
A, B, C, D, E = map(PeerId, "abcde")


def one(me: PeerId = A) -> Absence:
    return Absence(me, PATIENCE_S, (0.0, 1000.0))


def ready(peer: PeerId, incarnation: int) -> Announcement:
    return Announcement(peer, "run", incarnation, ready=True)


def split(me: PeerId, here: list[PeerId], there: list[PeerId]) -> bool:
    """Whether `me` finds that it was away, after `there` were cut off from it and `here`, and came back."""
    seen = one(me)
    for peer in there:
        seen.died(peer, 10.0)
    others = [peer for peer in here if peer != me]
    verdicts = []
    for peer in there:
        lost_at = seen.lives(peer)
        assert lost_at == 10.0
        others.append(peer)
        verdicts.append(seen.returned(peer, 1, lost_at, others, 70.0))
    return any(verdicts)


@pytest.mark.parametrize("clocks", [(20.0, 1004.0), (4.0, 1020.0)], ids=["stopped", "suspended"])
def test_who_stood_still_by_either_clock_was_away(clocks: tuple[float, float]) -> None:
    seen = one()

    assert not seen.look((2.0, 1002.0))
    assert seen.look(clocks)
    assert not seen.look(clocks)


def test_whom_most_of_the_others_accuse_was_away_and_one_alone_may_err() -> None:
    seen = one()

    assert not seen.accused_by(B, [B, C, D], 0.0)
    assert not seen.accused_by(B, [B, C, D], 1.0)
    assert not seen.accused_by(E, [B, C, D], 1.0)  # of another region, or of none
    assert not seen.accused_by(C, [B, C, D], PATIENCE_S + 2)  # the first one has long been wrong
    assert seen.accused_by(D, [B, C, D], PATIENCE_S + 3)


@pytest.mark.parametrize(
    ("left", "right"), [([A], [B]), ([A], [B, C]), ([A, D], [B, C]), ([E, D], [A, B, C]), ([C], [A, B, D, E])]
)
def test_after_a_split_the_smaller_side_follows_and_the_larger_one_does_not(left: list[PeerId], right: list[PeerId]) -> None:
    on_the_left = [split(me, left, right) for me in left]
    on_the_right = [split(me, right, left) for me in right]

    assert len(set(on_the_left)) == len(set(on_the_right)) == 1 and on_the_left[0] != on_the_right[0]
    if len(left) < len(right):
        assert on_the_left[0]


def test_who_died_at_another_time_is_on_no_side() -> None:
    seen = one()
    for i, peer in enumerate((B, C, D)):
        seen.died(peer, 100.0 * i)

    assert not seen.returned(E, 1, lost_at=500.0, others=[E], now=520.0)  # else it were four against one


def test_the_smaller_side_is_on_probation_until_it_says_anew_that_it_is_ready_or_time_has_passed() -> None:
    seen = one()
    seen.died(B, 10.0)

    assert not seen.returned(B, 7, seen.lives(B), [B, C, D], 70.0)

    assert not seen.trusted(ready(B, 7)).ready and seen.trusted(ready(B, 8)).ready and seen.trusted(ready(C, 7)).ready
    assert not seen.end_probation(70.0 + PROBATION_S - 1)
    n_doubted = seen.n_doubted
    assert seen.end_probation(70.0 + PROBATION_S) and seen.n_doubted > n_doubted
    assert seen.trusted(ready(B, 7)).ready


def test_the_dead_that_are_remembered_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence, "MAX_LOST", 3)
    seen = one()

    for i in range(10):
        seen.died(PeerId(f"peer{i}"), float(i))

    assert len(seen._lost) == 3 and seen.lives(PeerId("peer6")) is None and seen.lives(PeerId("peer9")) == 9.0
