"""1-bit Adam: AdamW first, then linear in the gradients."""

import copy

import pytest
import torch

from legion_p2p.errors import UsageError
from legion_p2p.train.onebit import OneBitAdam


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, 6))


def gradients(n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, generator=generator) for _ in range(n)]


def steps(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, grads: list[torch.Tensor]) -> torch.Tensor:
    for grad in grads:
        p.grad = grad
        optimizer.step()
    return p.detach().clone()


def test_until_it_freezes_it_is_torchs_adamw() -> None:
    ours, theirs = parameter(), parameter()
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}

    got = steps(ours, OneBitAdam([ours], **options, freeze_step=1000), gradients(30))

    torch.testing.assert_close(got, steps(theirs, torch.optim.AdamW([theirs], **options), gradients(30)))


def test_frozen_the_mean_of_peers_is_the_peer_of_the_mean() -> None:
    """What compression relies on, and what Adam with a live variance does not do."""

    def moved(grads: list[torch.Tensor], freeze_step: int) -> torch.Tensor:
        p = parameter()
        optimizer = OneBitAdam([p], lr=0.01, weight_decay=0.0, freeze_step=freeze_step)
        return steps(p, optimizer, gradients(20, seed=9) + grads)

    a, b = gradients(10, seed=1), gradients(10, seed=2)
    mean = [(x + y) / 2 for x, y in zip(a, b, strict=True)]

    torch.testing.assert_close((moved(a, 20) + moved(b, 20)) / 2, moved(mean, 20))
    assert not torch.allclose((moved(a, 1000) + moved(b, 1000)) / 2, moved(mean, 1000), atol=1e-4)


def test_it_freezes_when_the_variance_has_settled_and_not_while_gradients_shrink() -> None:
    p = parameter()
    settled = OneBitAdam([p], lr=0.0, least_warmup=50, betas=(0.9, 0.99))
    steps(p, settled, [torch.ones(6) * 0.5 ** (i / 20) for i in range(300)])
    assert settled.warming_up

    steps(p, settled, [torch.ones(6)] * 600)
    assert settled.frozen_at is not None and 300 < settled.frozen_at < 900


def test_it_goes_on_where_it_was_from_its_state() -> None:
    p = parameter()
    first = OneBitAdam([p], lr=0.01, freeze_step=5)
    steps(p, first, gradients(8))
    q = torch.nn.Parameter(p.detach().clone())
    second = OneBitAdam([q], lr=0.01, freeze_step=5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch shares what it is given

    assert second.frozen_at == 5
    assert torch.equal(steps(p, first, gradients(3, seed=4)), steps(q, second, gradients(3, seed=4)))


def test_rates_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="must be 0 or more"):
        OneBitAdam([parameter()], lr=-1.0)
