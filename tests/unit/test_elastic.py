"""Two copies that pull at each other: what is conserved, and where they stop coming together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.errors import NonFiniteError, UsageError
from legion_p2p.tensor.elastic import center_bound, pairwise_bound
from legion_p2p.tensor.sync_step import move_at


def train_pair(alpha: float, staleness: int, curvature: float, n_exchanges: int) -> float:
    """Distance of two that minimize a quadratic and exchange what they were `staleness` exchanges ago; it was 1."""
    a, b = torch.tensor([2.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    seen = [(a, b)] * (staleness + 1)
    for _ in range(n_exchanges):
        old_a, old_b = seen[-1 - staleness]
        step = alpha * (old_a - old_b)
        a, b = a - step - curvature * a, b + step - curvature * b
        seen.append((a, b))
        if abs(a - b) > 1e6:
            break
    return float(abs(a - b))


@pytest.mark.parametrize("curvature", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_below_the_bound_a_pair_comes_together_and_above_it_does_not(staleness, curvature):
    bound = pairwise_bound(staleness, curvature)

    assert train_pair(0.95 * bound, staleness, curvature, 1500) < 1e-3
    if staleness == 0 or curvature == 0:  # where the bound is exact; elsewhere it errs on the safe side
        assert train_pair(min(1.0, 1.05 * bound), staleness, curvature, 1500) >= (1.0 if bound > 0.95 else 1e3)


@pytest.mark.parametrize("n_copies", [1, 4, 16])
@pytest.mark.parametrize("curvature", [0.05, 0.5, 1.0, 1.5])
def test_below_its_bound_a_center_holds_its_copies_together_and_above_it_does_not(n_copies, curvature):
    def distance(beta: float) -> float:
        copies_N, center = torch.linspace(1.0, 1.5, n_copies, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for _ in range(3000):
            apart_N = copies_N - center
            copies_N, center = copies_N - curvature * copies_N - beta / n_copies * apart_N, center + beta * apart_N.mean()
            if float(center.abs()) > 1e6:
                break
        return float(center.abs() + copies_N.mean().abs())

    bound = center_bound(n_copies, curvature)

    assert distance(0.97 * bound) < 1e-3
    assert distance(1.03 * bound) > 1e3


def test_for_one_copy_the_bound_is_the_papers():
    for curvature in (0.05, 0.5, 1.0, 1.5):
        assert center_bound(1, curvature) == pytest.approx((4 - 2 * curvature) / (4 - curvature))


def elastic_step(own_N: Tensor, sent_N: Tensor, received_N: Tensor, alpha: float) -> Tensor:
    """What one side holds after a sync, by what both know of each other."""
    return own_N - move_at(sent_N, received_N, alpha, ours_first=True).step_N


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 1 << 30))
def test_the_mean_is_conserved_to_rounding_however_lossy_the_messages(n, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    a_N, b_N = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
    from_a_N, from_b_N = a_N.to(torch.bfloat16).float(), b_N.to(torch.bfloat16).float()

    new_a_N, new_b_N = elastic_step(a_N, from_a_N, from_b_N, alpha), elastic_step(b_N, from_b_N, from_a_N, alpha)

    before_N, after_N = a_N.double() + b_N.double(), new_a_N.double() + new_b_N.double()
    most_N = torch.stack([a_N, b_N, new_a_N, new_b_N]).abs().amax(0).double()
    assert bool(((after_N - before_N).abs() <= 2**-23 * most_N + 1e-30).all())


def test_half_way_with_exact_messages_both_are_the_mean():
    a_N, b_N = torch.tensor([1.0, 4.0]), torch.tensor([3.0, -4.0])

    assert torch.equal(elastic_step(a_N, a_N, b_N, 0.5), torch.tensor([2.0, 0.0]))
    assert torch.equal(elastic_step(b_N, b_N, a_N, 0.5), torch.tensor([2.0, 0.0]))


def test_what_cannot_be_is_refused():
    x_N = torch.zeros(3)

    with pytest.raises(NonFiniteError):
        elastic_step(x_N, torch.full((3,), float("inf")), x_N, 0.5)
    with pytest.raises(UsageError):
        pairwise_bound(-1)
    with pytest.raises(UsageError):
        center_bound(0, 0.5)
