"""Several optimizers as one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from legion_p2p.errors import UsageError
from legion_p2p.train.inner_list import OptimizerList, as_one, is_proportional
from legion_p2p.train.muon import MuonAdamW


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def pair_of(model: nn.Sequential) -> list[torch.optim.Optimizer]:
    return [MuonAdamW([model[0].weight], [], lr=0.02), torch.optim.AdamW([model[0].bias, *model[2].parameters()], lr=0.01)]


def loss_of(model: nn.Module, step: int) -> Tensor:
    return model(torch.full((3, 4), 0.1 * (step + 1))).square().sum()


def test_it_steps_all_of_them_as_they_would_step_alone() -> None:
    alone, together = model_of(), model_of()
    separate, one = pair_of(alone), as_one(pair_of(together))

    for step in range(4):
        for opt in separate:
            opt.zero_grad()
        loss_of(alone, step).backward()
        for opt in separate:
            opt.step()
        one.zero_grad()
        loss_of(together, step).backward()
        one.step()

    assert isinstance(one, torch.optim.Optimizer)
    assert all(map(torch.equal, alone.parameters(), together.parameters()))
    assert len(one.state) == len(list(together.parameters()))


def test_a_schedule_sets_the_rates_of_all() -> None:
    members = pair_of(model_of())
    one = OptimizerList(members)
    schedule = torch.optim.lr_scheduler.LambdaLR(one, lambda step: 0.5**step)

    one.step()
    schedule.step()

    assert [group["lr"] for opt in members for group in opt.param_groups] == pytest.approx([0.01, 0.005])


def test_its_state_goes_out_and_in() -> None:
    first, second = model_of(), model_of()
    one, other = OptimizerList(pair_of(first)), OptimizerList(pair_of(second))
    for step in range(2):
        loss_of(first, step).backward()
        one.step()
    second.load_state_dict(first.state_dict())

    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for model, opt in ((first, one), (second, other)):
        opt.zero_grad()
        loss_of(model, 2).backward()
        opt.step()

    assert all(map(torch.equal, first.parameters(), second.parameters()))
    with pytest.raises(UsageError, match="a state of 1 optimizers, there are 2"):
        other.load_state_dict({"optimizers": [{}]})


def test_a_closure_is_evaluated_by_the_first() -> None:
    model = model_of()
    one, calls = OptimizerList(pair_of(model)), []

    def closure() -> Tensor:
        calls.append(1)
        one.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    assert one.step(closure).item() == loss_of(model_of(), 0).item()
    assert len(calls) == 1
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_scaler_unscales_all() -> None:
    model = model_of()
    one, scaler = OptimizerList(pair_of(model)), torch.amp.GradScaler("cpu", init_scale=1024.0)

    scaler.scale(loss_of(model, 0)).backward()
    scaler.unscale_(one)
    scaler.step(one)
    scaler.update()

    plain = model_of()
    separate = pair_of(plain)
    loss_of(plain, 0).backward()
    for opt in separate:
        opt.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("members", "text"),
    [
        (lambda m: [], "is empty"),
        (lambda m: [torch.optim.SGD(m.parameters(), lr=1), m], "optimizer 1 of the list is a Sequential"),
        (lambda m: [torch.optim.SGD(m.parameters(), lr=1), torch.optim.SGD(m[0].parameters(), lr=1)], "would be stepped twice"),
    ],
)
def test_what_cannot_be_put_together_is_named(members: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        as_one(members(model_of()))


def test_one_optimizer_stays_itself() -> None:
    inner = torch.optim.SGD(model_of().parameters(), lr=1)

    assert as_one(inner) is inner


def test_only_optimizers_that_scale_with_the_gradient_make_steps_in_proportion_to_it() -> None:
    model = model_of()

    assert is_proportional(torch.optim.SGD(model.parameters(), lr=1, momentum=0.9))
    assert not is_proportional(torch.optim.AdamW(model.parameters()))
    assert not is_proportional(as_one(pair_of(model)))
    assert is_proportional(as_one([torch.optim.SGD(model[0].parameters(), lr=1), torch.optim.SGD(model[2].parameters(), lr=1)]))
    mixed = [torch.optim.SGD(model[0].parameters(), lr=1), torch.optim.AdamW(model[2].parameters())]
    assert not is_proportional(as_one(mixed))
