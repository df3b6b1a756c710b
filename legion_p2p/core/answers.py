"""Answers to questions of a multiple-choice test, as members tell each other of them, and what they come to."""

import struct
from collections.abc import Iterable

import msgspec

MAX_QUESTIONS = 8192  # of all tasks together: their answers have 16 KiB, which one message carries
MAX_ANSWER_BYTES = 2 * MAX_QUESTIONS
MARK_LENGTH = 8  # bytes of a test's digest that members announce


class Answer(msgspec.Struct, frozen=True):
    """Of one question."""

    question: int
    is_right: bool
    """The choice of the highest log-likelihood is a right one."""
    is_right_norm: bool
    """The same after dividing by the length of each choice."""


class TaskScore(msgspec.Struct, frozen=True):
    """How well the model does in one task."""

    task: str
    n: int
    n_answered: int
    acc: float | None
    """Share of right answers among those that were given; None: there are none."""
    acc_norm: float | None
    stderr: float | None
    """Standard error of `acc`; None: of fewer than two answers."""


class RoundScores(msgspec.Struct, frozen=True):
    """Of one round."""

    round: int
    first_step: int
    last_step: int
    """Of the run, as the members that answered counted."""
    tasks: tuple[TaskScore, ...]

    @property
    def n_answered(self) -> int:
        return sum(task.n_answered for task in self.tasks)


def pack_answers(answers: Iterable[Answer]) -> bytes:
    """Two bytes each: the question's number, and whether it was answered right by the one measure and by the other."""
    packed = [one.question << 2 | one.is_right << 1 | one.is_right_norm for one in answers]
    return struct.pack(f"<{len(packed)}H", *packed)
