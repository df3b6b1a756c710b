"""Which questions of a multiple-choice test each member answers, and what all of them together came to.

A round belongs to a step of the run: round r begins when the run has come to step r * `every`, which all members notice at about
the same time. Each question is assigned to the member of the test with the highest rendezvous score for (round, question,
member), so that each is answered once, and a member that joins or leaves moves only its own share.

    begin      the questions of this member in a new round, by the members of the test at that moment
    answered   its answers are there for the others to ask for
    heard      another member's answers in the same round

Members that see different members may answer a question twice, or leave one out. Of two answers that of the higher score counts;
one that is left out is counted as not answered. Nothing proves an answer: a liar decides about the questions that are its own,
one n-th of them, and about those that nobody else has answered, but about no others.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from legion_p2p.core.answers import MARK_LENGTH, MAX_ANSWER_BYTES, MAX_QUESTIONS, Answer, RoundScores, TaskScore, pack_answers
from legion_p2p.core.chunks import assigned_to, chunk_ids, scores_of
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, UsageError

MAX_TESTED = 1024  # members whose answers are taken in one round: more would have eight questions each
ROUNDS_KEPT = 2  # of this member's answers: one that is a little behind asks for those before the newest


class QuestionLedger:
    """One test as one member sees it. Not thread-safe."""

    def __init__(self, digest: bytes, tasks: Sequence[tuple[str, int]], every: int, me: PeerId) -> None:
        """`digest`: of all questions, and of `every`: members with another one take another test. `tasks`: name, and questions.

        Raises: UsageError.
        """
        self.digest = digest
        self.round = 0
        """The newest that this member has begun; 0: none."""
        self._tasks = tuple(tasks)
        self._n = sum(n for _, n in tasks)
        if not 1 <= self._n <= MAX_QUESTIONS or every < 1:
            raise UsageError(f"{self._n} questions every {every} steps: must be 1 to {MAX_QUESTIONS}, and every step or more")
        self._every = every
        self._me = me
        self._ids = chunk_ids(self._n, digest)
        self._own: dict[int, tuple[int, bytes]] = {}  # by round: the step, and the packed answers
        self._last: RoundScores | None = None
        self._reset()

    def _reset(self) -> None:
        self._heard: dict[PeerId, int] = {}  # step of each member that has answered
        self._is_answered: npt.NDArray[np.bool_] = np.zeros(self._n, bool)
        self._score: npt.NDArray[np.uint64] = np.zeros(self._n, np.uint64)
        self._right: npt.NDArray[np.bool_] = np.zeros((2, self._n), bool)

    @property
    def mark(self) -> bytes:
        """What members announce of the test."""
        return self.digest[:MARK_LENGTH]

    @property
    def answered_round(self) -> int:
        """The newest round whose questions this member has answered; 0: none."""
        return max(self._own, default=0)

    def come_late(self, run_step: int) -> None:
        """This member comes when the run is at `run_step`: the questions of the round that runs are assigned without it."""
        self.round = max(self.round, run_step // self._every)

    def begin(self, run_step: int, members: Iterable[PeerId]) -> tuple[int, ...] | None:
        """This member's questions, if the run has come to a new round; `members` are those of the test. None: it has not."""
        due = run_step // self._every
        if due <= self.round:
            return None
        if self._heard:
            self._last = self._now()
        self.round = due
        self._reset()
        assigned = assigned_to(self._ids, {*members, self._me}, due)
        return tuple(i for i, name in enumerate(self._ids) if assigned[name] == self._me)

    def answered(self, answers: Sequence[Answer], step: int) -> None:
        """This member's answers in the round that it has begun."""
        packed = pack_answers(answers)
        self._own[self.round] = (step, packed)
        for old in sorted(self._own)[:-ROUNDS_KEPT]:
            del self._own[old]
        self.heard(self._me, self.round, step, packed)

    def answers_in(self, round: int) -> tuple[int, bytes] | None:
        """The step, and the packed answers of this member; None: it has none of that round."""
        return self._own.get(round)

    def missing(self, members: Iterable[PeerId]) -> list[PeerId]:
        """Those whose answers in the present round are not here."""
        return [peer for peer in members if peer not in self._heard] if self.round else []

    def heard(self, peer: PeerId, round: int, step: int, packed: bytes) -> None:
        """A member's answers. Those of another round do not count, and none counts twice. Raises: DecodeError."""
        if len(packed) % 2 or len(packed) > MAX_ANSWER_BYTES:
            raise DecodeError(f"answers in {len(packed)} bytes, must be two each, and at most {MAX_ANSWER_BYTES}")
        given = np.frombuffer(packed, "<u2")
        questions = (given >> 2).astype(np.int64)
        if len(questions) != len(np.unique(questions)) or (len(questions) and int(questions.max()) >= self._n):
            raise DecodeError(f"answers to questions up to {questions.max(initial=0)}, each once: the test has {self._n}")
        if round != self.round or peer in self._heard or len(self._heard) >= MAX_TESTED:
            return
        self._heard[peer] = min(max(step, round * self._every), (round + 1) * self._every)  # a member that lies may say any
        score = scores_of([self._ids[i] for i in questions], [peer], round)[0] if len(questions) else self._score[:0]
        counts = ~self._is_answered[questions] | (score > self._score[questions])
        taken = questions[counts]
        self._is_answered[taken] = True
        self._score[taken] = score[counts]
        self._right[:, taken] = np.stack([given >> 1 & 1, given & 1])[:, counts].astype(bool)

    def scores(self) -> RoundScores | None:
        """Those of the present round, or of the one before while that has more answers. None: nothing was answered yet."""
        now = self._now() if self._heard else None
        if now is None or (self._last is not None and now.n_answered < self._last.n_answered):
            return self._last
        return now

    @property
    def is_complete(self) -> bool:
        """Every question of the present round is answered."""
        return bool(self._is_answered.all())

    def _now(self) -> RoundScores:
        rows, at = [], 0
        for name, n in self._tasks:
            rows.append(self._score_of(name, slice(at, at + n)))
            at += n
        return RoundScores(self.round, min(self._heard.values()), max(self._heard.values()), tuple(rows))

    def _score_of(self, name: str, part: slice) -> TaskScore:
        given = self._is_answered[part]
        n, n_answered = len(given), int(given.sum())
        if not n_answered:
            return TaskScore(name, n, 0, None, None, None)
        acc, acc_norm = (float(self._right[i, part][given].mean()) for i in (0, 1))
        stderr = math.sqrt(acc * (1 - acc) / (n_answered - 1)) if n_answered > 1 else None
        return TaskScore(name, n, n_answered, acc, acc_norm, stderr)
