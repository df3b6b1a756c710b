"""Whatever moves weights where the run does not see it is noticed, and named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from legion_p2p.errors import UsageError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.inner_guard import InnerGuard
from legion_p2p.train.inner_list import OptimizerList
from legion_p2p.train.parameters import ModelView


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def guard_of(inner: torch.optim.Optimizer, model: nn.Module) -> InnerGuard:
    own = ModelView(model)
    return InnerGuard(inner, FlatView(own.trained), own.name_of)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    x = torch.linspace(-1, 1, 12).view(3, 4)
    model(x).square().sum().backward()


# what is not in the run


def test_a_layer_that_is_unfrozen_later_is_named_before_anything_moves() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = guard_of(inner, model)
    backward(model)
    guard.step(None)
    model[0].requires_grad_(True)
    backward(model)
    before = [p.detach().clone() for p in model.parameters()]

    with pytest.raises(UsageError, match=r"parameter 0\.weight has a gradient and is not in the run.*wrap it after unfreezing"):
        guard.step(None)

    assert all(map(torch.equal, before, model.parameters()))


def test_a_group_that_is_added_later_is_named_by_its_place() -> None:
    model, other = model_of(), nn.Linear(3, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = guard_of(inner, model)
    inner.add_param_group({"params": other.parameters()})
    other(torch.ones(3)).backward()

    with pytest.raises(UsageError, match=r"parameter 0 of the inner optimizer's group 1, of shape \[1, 3\], has a gradient"):
        guard.step(None)


def test_gradients_that_a_closure_makes_are_looked_at_as_well() -> None:
    model, loss_weight = model_of(), nn.Parameter(torch.ones(1))
    guard = guard_of(torch.optim.SGD([*model.parameters(), loss_weight], lr=0.1), model)

    def closure() -> Tensor:
        loss = model(torch.ones(4)).sum() * loss_weight.sum()
        loss.backward()
        return loss

    with pytest.raises(UsageError, match="has a gradient and is not in the run"):
        guard.step(closure)


def test_frozen_parameters_in_the_optimizer_disturb_nobody() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    guard = guard_of(torch.optim.AdamW(model.parameters()), model)

    for _ in range(3):
        backward(model)
        guard.step(None)


# other ways to step


def test_a_step_of_the_optimizer_inside_is_refused_until_it_is_released() -> None:
    model = model_of()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = guard_of(inner, model)
    backward(model)

    with pytest.raises(UsageError, match="on the optimizer inside: the run would not see that step"):
        inner.step()
    guard.step(None)
    guard.release()
    inner.step()


def test_so_is_one_of_a_member_of_a_list() -> None:
    model = model_of()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    guard = guard_of(OptimizerList([first, second]), model)
    backward(model)

    with pytest.raises(UsageError, match="on the optimizer inside"):
        second.step()
    guard.step(None)


class SAM(torch.optim.SGD):
    """Sharpness-aware minimization, as it is usually written."""

    def __init__(self, params: Any, assigns_data: bool = False) -> None:
        super().__init__(params, lr=0.1)
        self.assigns_data = assigns_data
        self.calls = 0

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.data.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            if self.assigns_data:
                p.data = self.state[p]["old"]
            else:
                p.data.copy_(self.state[p]["old"])
        super().step()

    def norm(self, factor: float = 1.0) -> float:
        self.calls += 1
        return factor * float(sum(p.grad.norm() for p in self.param_groups[0]["params"]))


@pytest.mark.parametrize("method", ["first_step", "second_step"])
@pytest.mark.parametrize("assigns_data", [False, True])
def test_methods_that_move_weights_are_refused_by_name(method: str, assigns_data: bool) -> None:
    model = model_of()
    inner = SAM(model.parameters(), assigns_data)
    guard = guard_of(inner, model)
    backward(model)
    if method == "second_step":
        inner.first_step()

    with pytest.raises(UsageError, match=rf"SAM\.{method} moved the parameters, but in a run only step\(\) may.*closure"):
        guard.attribute(method)()


def test_other_methods_and_attributes_pass() -> None:
    model = model_of()
    inner = SAM(model.parameters())
    guard = guard_of(inner, model)
    backward(model)

    assert guard.attribute("norm")(factor=2.0) == 2 * inner.norm()
    assert guard.attribute("calls") == 2
    assert guard.attribute("state") is inner.state
    with pytest.raises(AttributeError):
        guard.attribute("nothing")
    guard.release()
    guard.attribute("first_step")()  # after close() the inner optimizer is free


# copies that are written back


class Masters(torch.optim.SGD):
    """Keeps fp32 or other copies of the parameters, steps those, and writes them back."""

    def __init__(self, params: Any, keep: str, lr: float = 0.01) -> None:
        super().__init__(params, lr=lr)
        self.lr = lr
        own = self.param_groups[0]["params"]
        if keep == "list":
            self.masters = [p.detach().clone().float() for p in own]
        elif keep == "double":
            self.kept = {"fp64": [p.detach().double() for p in own]}
        elif keep == "state":
            for p in own:
                self.state[p]["master"] = p.detach().clone().float()
        elif keep == "numpy":
            self.arrays = [p.detach().float().numpy().copy() for p in own]
        elif keep == "flat":
            self.flat = torch.cat([p.detach().reshape(-1) for p in own]).float()
        elif keep == "inside":
            self.engine = Engine([p.detach().clone().float() for p in own])
        elif keep == "closure":
            hidden = [p.detach().clone().float() for p in own]
            self.all_of_them = lambda: hidden
        self.keep = keep

    def copies(self) -> list[Tensor]:
        own = self.param_groups[0]["params"]
        return {
            "list": lambda: self.masters,
            "double": lambda: self.kept["fp64"],
            "state": lambda: [self.state[p]["master"] for p in own],
            "numpy": lambda: [torch.from_numpy(a) for a in self.arrays],
            "flat": lambda: [f.view_as(p) for f, p in zip(self.flat.split([p.numel() for p in own]), own, strict=True)],
            "inside": lambda: self.engine.buffers,
            "closure": lambda: self.all_of_them(),
        }[self.keep]()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p, master in zip(self.param_groups[0]["params"], self.copies(), strict=True):
            master.sub_(p.grad.to(master.dtype), alpha=self.lr)
            p.copy_(master)


class Engine:
    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers


def train_with_updates(model: nn.Module, guard: InnerGuard, n: int = 6, by: float = 0.05) -> None:
    """Steps, with an update of the run after each."""
    for i in range(n):
        backward(model)
        guard.step(None)
        with torch.no_grad():
            for j, p in enumerate(model.parameters()):
                p.add_(by * torch.cos(torch.arange(p.numel(), dtype=p.dtype) + i + j).view_as(p))
        guard.updated()


@pytest.mark.parametrize("keep", ["list", "double", "state", "numpy", "flat", "inside", "closure"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_an_optimizer_that_writes_a_copy_back_is_refused_by_name(keep: str, kind: torch.dtype) -> None:
    model = model_of().to(kind)
    x = torch.linspace(-1, 1, 12, dtype=kind).view(3, 4)
    inner = Masters(model.parameters(), keep)
    guard = guard_of(inner, model)

    def work() -> None:
        for i in range(6):
            model.zero_grad()
            model(x).square().sum().backward()
            guard.step(None)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.05 * (1 + i % 2))
            guard.updated()

    with pytest.raises(UsageError, match="Masters keeps a copy of the parameters and writes it back"):
        work()


class Remembers(torch.optim.SGD):
    """Keeps the parameters of the last step and of the first one, for its rate, and never writes them back."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("first", p.detach().clone())
            self.state[p]["last"] = p.detach().clone()


HONEST: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "a high rate": lambda m: torch.optim.SGD(m.parameters(), lr=0.5),
    "rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "asgd": lambda m: torch.optim.ASGD(m.parameters(), t0=1),
    "remembers": lambda m: Remembers(m.parameters(), lr=0.05),
}


@pytest.mark.parametrize("optimizer", HONEST)
def test_one_that_only_remembers_is_left_alone(optimizer: str) -> None:
    model = model_of()

    train_with_updates(model, guard_of(HONEST[optimizer](model), model), n=40)


def test_lbfgs_that_returns_to_its_minimum_after_each_update_is_left_alone() -> None:
    p = nn.Parameter(torch.tensor(np.linspace(0, 1, 50), dtype=torch.float32))
    inner = torch.optim.LBFGS([p], lr=1.0, max_iter=10)
    guard = InnerGuard(inner, FlatView([("p", p)]), lambda tensor: None)

    def closure() -> Tensor:
        inner.zero_grad()
        loss = (p - 0.5).square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        guard.step(closure)
        with torch.no_grad():
            p.add_(0.3)
        guard.updated()
