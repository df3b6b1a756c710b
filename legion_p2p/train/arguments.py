"""The model and the optimizer that a user hands in: what they must be, and what was probably meant where they are not."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from legion_p2p.config.forms import in_short
from legion_p2p.core.roles import Role
from legion_p2p.errors import UsageError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.parameters import ModelView

Model = nn.Module | Iterable[tuple[str, Tensor]]
"""A module, or its (name, parameter) pairs."""


def checked_inner(inner: Any) -> Any:
    """The optimizer that makes the local steps, or a list of several, as it is. Raises: UsageError."""
    if isinstance(inner, torch.optim.Optimizer | list | tuple):
        return inner
    if isinstance(inner, nn.Module):
        raise UsageError("inner is a module: the order is Optimizer(inner, model, ...)")
    if isinstance(inner, type) and issubclass(inner, torch.optim.Optimizer):
        raise UsageError(f"inner is the class {inner.__name__}: give an object, {inner.__name__}(model.parameters())")
    raise UsageError(f"inner is {in_short(inner)}: give a torch.optim.Optimizer that holds the model's parameters")


def must_train(role: Role) -> None:
    """Raises: UsageError, where a peer of this role trains nothing."""
    if not role.trains:
        raise UsageError(f"Peer(role={role.value!r}) trains nothing: join the run without a model, as with legion_p2p.join(run)")


def must_hold(inner: Any, view: FlatView) -> None:
    """Raises: UsageError, where the inner optimizer does not hold a parameter of `view` that it should train."""
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    missing = [name for name, p in zip(view.names, view.parameters, strict=True) if p.requires_grad and id(p) not in held]
    if missing:
        raise UsageError(
            f"the inner optimizer does not hold {missing[0]}, a trainable parameter of the model ({len(missing)} are missing)"
        )


def model_view(model: Any) -> ModelView:
    """What is in a run of the model that was handed in. Raises: UsageError, naming what it is instead."""
    own = ModelView(model if isinstance(model, nn.Module) else _pairs(model))
    if not own.trained:
        raise UsageError("the model has no parameters to train: at least one must require gradients")
    return own


def _pairs(model: Any) -> list[tuple[str, Tensor]]:
    if isinstance(model, torch.optim.Optimizer):
        raise UsageError("model is an optimizer: the order is Optimizer(inner, model, ...)")
    if isinstance(model, Mapping):
        raise UsageError("model is a mapping, as state_dict() returns it, whose tensors are not trained: give the module itself")
    if isinstance(model, str | bytes | Tensor | type) or not isinstance(model, Iterable):
        raise UsageError(f"model is {in_short(model)}: give a torch.nn.Module, or its named_parameters()")
    pairs = list(model)
    for pair in pairs:
        if isinstance(pair, Tensor):
            raise UsageError("model is tensors without names, as of parameters(): give the module, or its named_parameters()")
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Tensor)):
            raise UsageError(f"model holds {in_short(pair)}: give a torch.nn.Module, or its named_parameters()")
    return [(name, parameter) for name, parameter in pairs]
