"""A peer's part in the multiple-choice test of --eval-tasks: it answers its questions with the common model, round by round."""

import time
from collections.abc import Callable, Sequence

from legion_p2p.core.answers import Answer
from legion_p2p.core.question_ledger import QuestionLedger
from legion_p2p.errors import UsageError
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.compute import Compute
from legion_p2p.train.corpus import BYTE_VOCABULARY, Corpus
from legion_p2p.train.datasets.tokenizer import Tokenizer
from legion_p2p.train.question_files import QuestionTask, digest_of
from legion_p2p.train.question_scores import answers_to, check_lengths

AT_ONCE = 64  # questions, between two looks at what the user wants
LOOK_EVERY_S = 1.0  # for a new round, which begins when the run has come to its step


class QuestionTest:
    """The tasks of a test, and the tokenizer by which the run's model reads them."""

    def __init__(self, tasks: Sequence[QuestionTask], every: int, corpus: Corpus, context: int) -> None:
        """Raises: UsageError, if the run's text has no tokenizer, or a choice does not fit into the model's context."""
        self.tasks = tuple(tasks)
        self.every = every
        self.tokenizer = _tokenizer_of(corpus)
        check_lengths(tasks, self.tokenizer, context)


class Examiner:
    """Of one peer in one run."""

    def __init__(self, thread: PeerThread, compute: Compute, test: QuestionTest) -> None:
        self._thread = thread
        self._compute = compute
        self._test = test
        self._questions = [question for task in test.tasks for question in task.questions]
        self._looked_at = time.monotonic()
        engine = thread.engine
        sizes = [(task.name, len(task.questions)) for task in test.tasks]
        ledger = QuestionLedger(digest_of(test.tasks, test.every), sizes, test.every, engine.me)
        thread.call(self._open, ledger)

    def due(self) -> tuple[int, ...]:
        """The questions to answer now; none: the run has not come to the next round."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return ()
        self._looked_at = now
        return self._thread.call(self._begin) or ()

    def answer(self, mine: Sequence[int], stops: Callable[[], bool] = lambda: False) -> None:
        """Answer them with the parameters that the model has now, and tell the others; no further once `stops` says so."""
        compute = self._compute
        for start in range(0, len(mine), AT_ONCE):
            if stops():
                return
            asked = [(number, self._questions[number]) for number in mine[start : start + AT_ONCE]]
            answers = answers_to(compute.model, asked, self._test.tokenizer, compute.device, compute.precise())
            self._thread.call(self._answered, answers)

    def _open(self, ledger: QuestionLedger) -> None:
        engine = self._thread.engine
        engine.questions.open(ledger, engine.run_step())

    def _begin(self) -> tuple[int, ...] | None:
        engine = self._thread.engine
        return engine.questions.begin(engine.run_step())

    def _answered(self, answers: list[Answer]) -> None:
        engine = self._thread.engine
        engine.questions.answered(answers, engine.run_step())


def _tokenizer_of(corpus: Corpus) -> Tokenizer:
    """Raises: UsageError."""
    if corpus.streamed is not None:
        return corpus.streamed.tokenizer
    if corpus.prepared is not None:
        return Tokenizer(corpus.prepared.tokenizer, "the run's tokenizer")
    if corpus.vocab_size != BYTE_VOCABULARY:
        raise UsageError(
            f"--eval-tasks: {corpus.name} is tokens without a tokenizer, so that no question can be read; prepare the text with "
            "legion-ctl data prepare, whose result has one"
        )
    return Tokenizer()
