"""Numbers from a training loop: whatever is one is taken, and what is none is named at the call."""

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement, open_signed, sign
from legion_p2p.core.identity import Identity
from legion_p2p.errors import UsageError
from legion_p2p.services.run.progress import Progress
from legion_p2p.train.values import loss_in, number, progressed, seconds, whole

ME = Identity(b"m" * 32)


class Scalar:
    """Any object with __float__."""

    def __float__(self) -> float:
        return 0.5


HALVES = [
    0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([[0.5]]),
    torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True), torch.nn.Parameter(torch.tensor(0.5)),
    Fraction(1, 2), Decimal("0.5"), Scalar(),
]  # fmt: skip
NO_NUMBERS = [
    "0.5", b"0.5", None, [0.5], (0.5,), {"loss": 0.5}, object(), torch.zeros(2), np.zeros(3), 0.5j, torch.tensor(0.5j),
    math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32(math.inf), 10**400, torch.zeros(0),
]  # fmt: skip


@pytest.mark.parametrize("value", HALVES, ids=lambda value: type(value).__name__)
def test_anything_with_float_is_a_number(value: Any) -> None:
    assert number(value, "loss") == 0.5
    assert type(number(value, "loss")) is float


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_finite_number_is_named(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^loss is "):
        number(value, "loss")


@pytest.mark.parametrize("value", [4, 4.0, np.int64(4), np.float32(4), torch.tensor(4), torch.tensor(4.0), Fraction(4), True + 3])
def test_a_whole_number_may_come_in_any_type(value: Any) -> None:
    assert whole(value, "n", 1) == 4
    assert type(whole(value, "n", 1)) is int


@pytest.mark.parametrize("value", [0, -1, 0.5, 1 << 63, math.nan, "4", torch.tensor(4.5), None])
def test_a_whole_number_has_bounds(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^n is "):
        whole(value, "n", 1)


def test_a_time_may_have_no_limit() -> None:
    assert seconds(None, "timeout_s") is None
    assert seconds(math.inf, "timeout_s") is None
    assert seconds(np.float32(1.5), "timeout_s") == 1.5
    for wrong in (-1, math.nan, "3"):
        with pytest.raises(UsageError, match=r"^timeout_s is "):
            seconds(wrong, "timeout_s")


@pytest.mark.parametrize(
    ("result", "loss"),
    [
        (torch.tensor(0.5), 0.5),
        (0.5, 0.5),
        ((torch.tensor(0.5), torch.zeros(3)), 0.5),
        ([0.5, "more"], 0.5),
        ({"loss": torch.tensor(0.5), "logits": torch.zeros(3)}, 0.5),
        (SimpleNamespace(loss=torch.tensor(0.5)), 0.5),
        ({"other": 1}, None),
        ((), None),
        (None, None),
        ("text", None),
        (torch.zeros(3), None),
        (torch.tensor(math.nan), None),
    ],
)
def test_a_closure_may_return_what_it_likes(result: Any, loss: float | None) -> None:
    assert loss_in(result) == loss


def test_what_a_peer_tells_of_itself_is_checked_by_field() -> None:
    told = progressed(
        Progress(), {"loss": torch.tensor(2.5), "step": np.int64(3), "training": 1, "chunks": b"c", "remaining_s": None}
    )

    assert told == Progress(loss=2.5, step=3, training=True, chunks=b"c")
    for wrong in ({"los": 1.0}, {"loss": math.nan}, {"step": -1}, {"chunks": "c"}, {"state": 3}, {"tokens_per_s": math.inf}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            progressed(Progress(), wrong)


@given(st.floats() | st.integers() | st.text() | st.none(), st.sampled_from(["loss", "step", "tokens", "step_s"]))
def test_whatever_is_noted_others_can_read_the_announcement(value: Any, field: str) -> None:
    try:
        told = progressed(Progress(), {field: value})
    except UsageError:
        return
    shown = {"step": told.step, "tokens": told.tokens, "loss": told.loss}

    open_signed(sign(Announcement(ME.peer_id, "run", **shown), ME))
