"""A multiple-choice test that members share: who answers what, whose answer counts, and what all answers come to."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.answers import MAX_QUESTIONS, Answer, pack_answers
from legion_p2p.core.identity import PeerId
from legion_p2p.core.question_ledger import MAX_TESTED, ROUNDS_KEPT, QuestionLedger
from legion_p2p.errors import DecodeError, UsageError

DIGEST = b"d" * 32
A, B, C = (PeerId(name) for name in "abc")


def ledger(me: PeerId = A, tasks: tuple[tuple[str, int], ...] = (("one", 30), ("two", 10)), every: int = 100) -> QuestionLedger:
    return QuestionLedger(DIGEST, tasks, every, me)


def all_right(questions: tuple[int, ...] | range) -> list[Answer]:
    return [Answer(i, True, True) for i in questions]


def all_wrong(questions: tuple[int, ...] | range) -> list[Answer]:
    return [Answer(i, False, False) for i in questions]


@given(st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=9), st.integers(100, 10_000))
def test_members_that_see_each_other_answer_each_question_once(names: set[str], step: int) -> None:
    members = [PeerId(name) for name in names]

    shares = [ledger(me).begin(step, members) for me in members]

    assert sorted(i for share in shares for i in share or ()) == list(range(40))


def test_a_round_begins_when_the_run_has_come_to_its_step_and_only_once() -> None:
    one = ledger()

    assert one.begin(99, []) is None
    assert one.begin(100, []) == tuple(range(40)) and one.begin(199, []) is None
    assert one.begin(450, []) is not None and one.round == 4  # the steps of two rounds went by at once


def test_a_member_that_comes_late_leaves_the_round_that_runs_to_those_that_were_there() -> None:
    one = ledger()

    one.come_late(530)

    assert one.begin(599, [B]) is None and one.begin(600, [B]) is not None


def test_scores_are_the_shares_of_right_answers_in_each_task_with_their_standard_error() -> None:
    one = ledger(tasks=(("one", 4), ("two", 2)))
    one.begin(100, [])

    one.answered([Answer(0, True, False), Answer(1, True, True), Answer(2, False, True), Answer(4, True, True)], 103)

    scores = one.scores()
    assert scores is not None and (scores.round, scores.first_step, scores.last_step, scores.n_answered) == (1, 103, 103, 4)
    first, second = scores.tasks
    assert (first.task, first.n, first.n_answered) == ("one", 4, 3)
    assert first.acc == pytest.approx(2 / 3) and first.acc_norm == pytest.approx(2 / 3)
    values = [1, 1, 0]  # as the sample's standard deviation has it
    deviation = math.sqrt(sum((v - 2 / 3) ** 2 for v in values) / 2)
    assert first.stderr == pytest.approx(deviation / math.sqrt(3))
    assert (second.n_answered, second.acc, second.stderr) == (1, 1.0, None)


def test_answers_of_all_members_come_together_whoever_is_heard_first() -> None:
    ledgers = {me: ledger(me) for me in (A, B, C)}
    for one in ledgers.values():
        mine = one.begin(100, list(ledgers))
        one.answered(all_right(mine or ()) if one is not ledgers[B] else all_wrong(mine or ()), 100)

    for one in ledgers.values():
        for peer, other in reversed(ledgers.items()):
            step, packed = other.answers_in(1) or (0, b"")
            one.heard(peer, 1, step, packed)

    found = [one.scores() for one in ledgers.values()]
    assert found[0] == found[1] == found[2] and found[0] is not None and found[0].n_answered == 40
    assert all(one.is_complete and one.missing(list(ledgers)) == [] for one in ledgers.values())


@given(st.booleans())
def test_a_liar_that_answers_everything_decides_about_its_own_questions_alone(is_heard_first: bool) -> None:
    ledgers = {me: ledger(me) for me in (A, B, C)}
    shares = {me: one.begin(100, list(ledgers)) or () for me, one in ledgers.items()}
    told = {A: all_right(shares[A]), B: all_right(shares[B]), C: all_wrong(range(40))}
    seen = ledgers[A]

    for peer in (C, A, B) if is_heard_first else (A, B, C):
        seen.heard(peer, 1, 100, pack_answers(told[peer]))

    scores = seen.scores()
    assert scores is not None and scores.n_answered == 40
    wrong = sum(round(task.n * (1 - (task.acc or 0.0))) for task in scores.tasks)
    assert wrong == len(shares[C])


def test_what_is_not_possible_is_refused_and_what_is_old_or_comes_twice_does_not_count() -> None:
    one = ledger()
    one.begin(250, [B])

    for impossible in (b"x", struct.pack("<H", 40 << 2), struct.pack("<2H", 4, 5), bytes(2 * MAX_QUESTIONS + 2)):
        with pytest.raises(DecodeError):
            one.heard(B, 2, 200, impossible)
    one.heard(B, 1, 200, pack_answers(all_right(range(40))))
    assert one.scores() is None
    one.heard(B, 2, 200, pack_answers(all_right(range(10))))
    one.heard(B, 2, 200, pack_answers(all_right(range(40))))
    scores = one.scores()
    assert scores is not None and scores.n_answered == 10


@given(st.binary(max_size=200))
def test_any_bytes_of_a_member_are_answers_or_a_decode_error(packed: bytes) -> None:
    one = ledger()
    one.begin(100, [B])

    try:
        one.heard(B, 1, 100, packed)
    except DecodeError:
        assert one.scores() is None


def test_a_crowd_does_not_make_it_grow_and_old_answers_go() -> None:
    one = ledger()
    for round in range(1, 6):
        one.begin(100 * round, [])
        one.answered(all_right((0,)), 100 * round)
    for n in range(2 * MAX_TESTED):
        one.heard(PeerId(f"peer {n}"), 5, 500, b"")

    assert len(one._heard) == MAX_TESTED
    assert [round for round in range(6) if one.answers_in(round)] == list(range(6 - ROUNDS_KEPT, 6))


def test_a_round_that_has_just_begun_does_not_hide_the_one_before() -> None:
    one = ledger()
    one.begin(100, [B])
    one.answered(all_right(range(40)), 101)
    one.begin(200, [B])
    assert one.scores() is not None and one.scores().round == 1  # type: ignore[union-attr]

    one.heard(B, 2, 200, pack_answers(all_wrong(range(20))))
    assert one.scores().round == 1  # type: ignore[union-attr]
    one.answered(all_wrong(range(40)), 202)

    assert one.scores().round == 2  # type: ignore[union-attr]


def test_too_many_questions_and_none_are_refused() -> None:
    for tasks in ((), (("empty", 0),), (("many", MAX_QUESTIONS), ("one more", 1))):
        with pytest.raises(UsageError, match=f"must be 1 to {MAX_QUESTIONS}"):
            ledger(tasks=tasks)


@pytest.mark.parametrize(("said", "counts"), [(0, 100), (150, 150), (1 << 60, 200)])
def test_a_member_that_lies_about_the_steps_of_the_run_does_so_within_the_round(said: int, counts: int) -> None:
    one = ledger()
    one.begin(120, [])
    one.heard(B, 1, said, b"")

    scores = one.scores()

    assert scores is not None and (scores.first_step, scores.last_step) == (counts, counts)
