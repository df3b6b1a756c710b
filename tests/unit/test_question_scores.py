"""Answers of a model to multiple-choice questions, against a computation that feeds one choice at a time, token by token."""

import math

import pytest
import torch

from legion_p2p.errors import UsageError
from legion_p2p.train import question_scores
from legion_p2p.train.datasets.tokenizer import Tokenizer, train_tokenizer
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.question_files import Question, QuestionTask
from legion_p2p.train.question_scores import answers_to, check_lengths, log_likelihoods, rows_of

WORDS = ["the dog barks at night", "a cat sleeps, and dreams of fish", "thé été: snow?", "no", "yes", "  two blanks", "x" * 30]
CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    return [Tokenizer(), Tokenizer(train_tokenizer(WORDS * 3, 300), "trained here")]


def model_for(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel.of_gpt(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, n_layer=2, n_head=2, width=16)))


def one_by_one(model: LanguageModel, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    """log P(continuation | context), a forward pass for each token and nothing else in the batch."""
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    whole = tokenizer.encode([context + continuation])[0].tolist()
    before = tokenizer.encode([context])[0].tolist()
    scored = whole[len(before) :]
    if not before:
        whole = [tokenizer.end_of_text or 0, *whole]
    total = 0.0
    with torch.no_grad():
        for n in range(len(scored)):
            at = len(whole) - len(scored) + n
            start = max(0, len(whole) - 1 - model.context)  # the same window for all of them
            logits = model.logits(torch.tensor([whole[start:at]]))[0, -1].double()
            total += math.log(torch.softmax(logits, 0)[whole[at]].item())
    return total


@pytest.mark.parametrize("context", ["", "the dog", "the dog ", "Q: what?\n\nA:", "a cat sleeps, " * 9])
def test_the_likelihood_of_a_choice_is_that_of_its_tokens_one_after_the_other(context: str, tokenizers: list[Tokenizer]) -> None:
    for tokenizer in tokenizers:
        model = model_for(tokenizer)
        question = Question(context, tuple(WORDS), (0,))

        found = log_likelihoods(model, rows_of(question, tokenizer))

        expected = [one_by_one(model, tokenizer, context, " " + word) for word in WORDS]
        assert found == pytest.approx(expected, abs=1e-3)


def test_an_answer_is_the_likeliest_choice_and_by_length_the_likeliest_per_character(tokenizers: list[Tokenizer]) -> None:
    tokenizer = tokenizers[0]
    model = model_for(tokenizer)
    questions = [Question(f"question {n}:", tuple(WORDS[: 2 + n % 5]), (n % 2,)) for n in range(12)]

    answers = answers_to(model, list(enumerate(questions, 100)), tokenizer)

    assert [answer.question for answer in answers] == list(range(100, 112))
    for answer, question in zip(answers, questions, strict=True):
        sums = [one_by_one(model, tokenizer, question.context, " " + choice) for choice in question.choices]
        means = [one / len(choice) for one, choice in zip(sums, question.choices, strict=True)]
        assert answer.is_right == (sums.index(max(sums)) in question.right)
        assert answer.is_right_norm == (means.index(max(means)) in question.right)
    assert {answer.is_right for answer in answers} == {True, False}  # chance, so that the test can fail both ways
    assert any(answer.is_right != answer.is_right_norm for answer in answers)


def test_a_model_goes_on_training_as_it_was(tokenizers: list[Tokenizer]) -> None:
    model = model_for(tokenizers[0])
    model.module.train()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    answers_to(model, [(0, Question("x", ("y", "z"), (0,)))], tokenizers[0])

    assert model.module.training and all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_a_choice_without_a_token_of_its_own_is_named_before_anything_begins(
    tokenizers: list[Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = QuestionTask("merged", (Question("x", ("y", "z"), (0,)),))
    for n_scored in (0, -1):
        rows = [question_scores.ScoredRow([1, 2], n_scored), question_scores.ScoredRow([1, 2], 1)]
        monkeypatch.setattr(question_scores, "rows_of", lambda *_, rows=rows: rows)

        with pytest.raises(UsageError, match="task 'merged', question 1: a choice adds no token"):
            check_lengths([task], tokenizers[0], CONTEXT)


def test_a_choice_that_fits_into_no_window_is_named_before_anything_begins(tokenizers: list[Tokenizer]) -> None:
    task = QuestionTask("long", (Question("x", ("y", "z"), (0,)), Question("x", ("y" * CONTEXT, "z"), (0,))))

    with pytest.raises(UsageError, match=rf"task 'long', question 2: a choice of {CONTEXT + 1} tokens"):
        check_lengths([task], tokenizers[0], CONTEXT)
    check_lengths([task], tokenizers[0], CONTEXT + 1)
