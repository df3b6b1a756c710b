"""The common model as it was when an evaluation found it best."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.train.best_common import BestCommon, is_better


def test_what_an_evaluation_found_best_is_kept_with_its_step():
    best = BestCommon()

    for step, loss in enumerate([3.0, 2.0, None, 2.5, math.nan, 2.0]):
        best.evaluated(loss, torch.full((2,), float(step)), step)

    assert (best.loss, best.step) == (2.0, 1)
    assert best.value is not None and torch.equal(best.value, torch.ones(2))


def test_nothing_is_kept_of_a_model_that_was_never_evaluated_to_a_number():
    best = BestCommon()

    best.evaluated(None, torch.zeros(2), 1)

    assert best.value is None and best.loss is None


@pytest.mark.parametrize(
    ("loss", "than", "wanted"),
    [
        (2.0, 3.0, True), (3.0, 2.0, False), (2.0, 2.0, False), (2.0, math.nan, True), (2.0, math.inf, True),
        (math.nan, 2.0, False), (math.nan, math.nan, False), (math.inf, math.nan, False), (None, 2.0, False), (2.0, None, False),
    ],
)  # fmt: skip
def test_a_model_whose_loss_is_a_number_is_better_than_one_that_has_diverged(
    loss: float | None, than: float | None, wanted: bool
):
    assert is_better(loss, than) is wanted


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_no_evaluation_was_better_than_what_is_kept(losses: list[float]):
    best = BestCommon()

    for step, loss in enumerate(losses):
        best.evaluated(loss, torch.tensor([float(step)]), step)

    assert best.loss == min(losses) and losses[best.step] == best.loss
