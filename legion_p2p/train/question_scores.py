"""Answering multiple-choice questions: the choice whose tokens are likeliest after the question, as lm-evaluation-harness has it.

For each choice the log-likelihood of its tokens is the sum over them, each given all before it. `acc` takes the choice with the
highest one; `acc_norm` divides it by the number of characters of the choice first, so that short choices have no advantage.
"""

# Shape suffixes: B = rows at once, T = tokens, V = vocabulary.

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from legion_p2p.core.answers import Answer
from legion_p2p.errors import UsageError
from legion_p2p.train.batches import windows_at_once
from legion_p2p.train.datasets.tokenizer import Tokenizer
from legion_p2p.train.evaluation import evaluating
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.question_files import Question, QuestionTask


@dataclass(frozen=True)
class ScoredRow:
    """What the model reads for one choice, and how many of the tokens at its end are the choice's."""

    tokens: list[int]
    n_scored: int


def check_lengths(tasks: Sequence[QuestionTask], tokenizer: Tokenizer, context: int) -> None:
    """That every choice has tokens of its own, and fits into a window. Raises: UsageError, naming the task and the question."""
    for task in tasks:
        for n, question in enumerate(task.questions, 1):
            lengths = [row.n_scored for row in rows_of(question, tokenizer)]
            if min(lengths) < 1:
                raise UsageError(
                    f"task {task.name!r}, question {n}: a choice adds no token of its own to the question, so nothing can "
                    "be scored; a target_delimiter that begins with a blank keeps them apart"
                )
            longest = max(lengths)
            if longest > context:
                raise UsageError(
                    f"task {task.name!r}, question {n}: a choice of {longest} tokens, this run's model reads {context} at once"
                )


def rows_of(question: Question, tokenizer: Tokenizer) -> list[ScoredRow]:
    """One for each choice. Blanks at the end of the context belong to the choice, where most tokenizers have them."""
    stripped = question.context.rstrip()
    blanks = question.context[len(stripped) :]
    continuations = [blanks + question.delimiter + choice for choice in question.choices]
    context, *wholes = tokenizer.encode([stripped, *(stripped + continuation for continuation in continuations)])
    before = context.tolist()
    if not stripped:  # something has to come before the first token
        before = [tokenizer.end_of_text or 0]
        return [ScoredRow([*before, *whole.tolist()], len(whole)) for whole in wholes]
    return [ScoredRow([*before, *whole[len(before) :].tolist()], len(whole) - len(before)) for whole in wholes]


@torch.no_grad()
def log_likelihoods(
    model: LanguageModel, rows: Sequence[ScoredRow], device: str = "cpu",
    precise: contextlib.AbstractContextManager[Any] | None = None,
) -> list[float]:  # fmt: skip
    """In nats, of each row's last tokens given all before them; of a row that is too long, what comes first is left out."""
    found = [0.0] * len(rows)
    with evaluating(model.module), precise or contextlib.nullcontext():
        for batch in _batches(rows, model.context):
            cut = [rows[i].tokens[-(model.context + 1) :] for i in batch]
            length = max(map(len, cut)) - 1
            padded = [tokens[:-1] + [0] * (length + 1 - len(tokens)) for tokens in cut]
            idx_BT = torch.tensor(padded, dtype=torch.int64, device=device)
            log_BTV = torch.log_softmax(model.logits(idx_BT).float(), dim=-1)
            for log_TV, tokens, i in zip(log_BTV, cut, batch, strict=True):
                n, end = rows[i].n_scored, len(tokens) - 1
                targets = torch.tensor(tokens[-n:] if n else [], dtype=torch.int64, device=device)
                found[i] = float(log_TV[end - n : end].gather(1, targets[:, None]).sum())
    return found


def answers_to(
    model: LanguageModel, questions: Sequence[tuple[int, Question]], tokenizer: Tokenizer, device: str = "cpu",
    precise: contextlib.AbstractContextManager[Any] | None = None,
) -> list[Answer]:  # fmt: skip
    """Of these questions, each with its number in the test."""
    rows = [row for _, question in questions for row in rows_of(question, tokenizer)]
    likelihoods = iter(log_likelihoods(model, rows, device, precise))
    answers = []
    for number, question in questions:
        of_choices = [next(likelihoods) for _ in question.choices]
        normed = [one / len(choice) for one, choice in zip(of_choices, question.choices, strict=True)]
        answers.append(Answer(number, _best(of_choices) in question.right, _best(normed) in question.right))
    return answers


def _best(values: Sequence[float]) -> int:
    """The first of the highest ones."""
    return max(range(len(values)), key=values.__getitem__)


def _batches(rows: Sequence[ScoredRow], context: int) -> Iterator[list[int]]:
    """Rows of about one length together, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    at_once = windows_at_once(context)
    for begin in range(0, len(order), at_once):
        yield order[begin : begin + at_once]
