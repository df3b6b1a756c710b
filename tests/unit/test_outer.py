"""Outer optimizers against torch's own, and against their definition."""

import pytest
import torch

from legion_p2p.errors import UsageError
from legion_p2p.tensor.outer import RULES, OuterState, carried_on, outer_step


def changes(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(7, generator=generator) for _ in range(n)]


@pytest.mark.parametrize(
    ("rule", "options"),
    [("average", {}), ("sgd", {"momentum": 0.5}), ("nesterov", {"momentum": 0.9, "nesterov": True})],
)
def test_it_is_torchs_sgd_on_the_averaged_change(rule: str, options: dict) -> None:
    theirs = torch.nn.Parameter(torch.zeros(7))
    sgd = torch.optim.SGD([theirs], lr=0.7, **options)
    ours, state = torch.zeros(7), OuterState()

    for change in changes(6):
        theirs.grad = change
        sgd.step()
        step, state = outer_step(rule, change, state, lr=0.7, momentum=options.get("momentum", 0.0))
        ours = ours - step

    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_plain_averaging_is_the_change_itself_bit_for_bit() -> None:
    (change,) = changes(1)

    step, state = outer_step("average", change, OuterState(), lr=1.0)

    assert step is change and state.momentum is None


def test_the_delayed_rule_gives_momentum_to_the_mean_of_some_rounds_only() -> None:
    a, b, c, d, e = changes(5)
    steps, state = [], OuterState()
    for change in (a, b, c, d, e):
        step, state = outer_step("delayed-nesterov", change, state, lr=0.5, momentum=0.9, delay=2)
        steps.append(step)

    first = (a + b) / 2
    second = 0.9 * first + (c + d) / 2
    expected = [0.5 * a, 0.5 * b, 0.5 * (c + 0.9 * first), 0.5 * (d + 0.9 * first), 0.5 * (e + 0.9 * second)]
    for step, want in zip(steps, expected, strict=True):
        torch.testing.assert_close(step, want)


def test_over_many_equal_rounds_delayed_and_plain_nesterov_go_equally_far() -> None:
    def far(rule: str) -> float:
        total, state = torch.zeros(1), OuterState()
        for _ in range(400):
            step, state = outer_step(rule, torch.ones(1), state, lr=1.0, momentum=0.5, delay=4)
            total += step
        return float(total)

    assert far("delayed-nesterov") == pytest.approx(far("nesterov"), rel=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_that_goes_in_is_changed(rule: str) -> None:
    one, two = changes(2)
    kept = one.clone(), two.clone()
    _, state = outer_step(rule, one, OuterState(), lr=0.5, momentum=0.5, delay=3)
    before = None if state.momentum is None else state.momentum.clone()

    outer_step(rule, two, state, lr=0.5, momentum=0.5, delay=3)

    assert torch.equal(one, kept[0]) and torch.equal(two, kept[1])
    assert before is None or torch.equal(state.momentum, before)


@pytest.mark.parametrize("rule", ["sgd", "nesterov"])
def test_what_arrives_after_some_rounds_counts_as_if_it_had_been_there_from_the_start(rule: str) -> None:
    early, late = changes(3), changes(4)
    before, kept, since = OuterState(), OuterState(), OuterState()
    for change in early:
        _, before = outer_step(rule, change, before, lr=0.5, momentum=0.8)
    kept = before
    for change in late:
        _, kept = outer_step(rule, change, kept, lr=0.5, momentum=0.8)
        _, since = outer_step(rule, change, since, lr=0.5, momentum=0.8)

    together = carried_on(since, before, len(late), momentum=0.8)

    torch.testing.assert_close(together.momentum, kept.momentum)
    assert carried_on(OuterState(), before, 0).momentum is before.momentum


def test_an_unknown_rule_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'adam', known are average, sgd"):
        outer_step("adam", torch.ones(2), OuterState(), lr=1.0)
