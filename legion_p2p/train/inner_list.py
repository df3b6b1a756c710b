"""Several optimizers as one: `legion.Optimizer([muon, adamw], model, ...)`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from legion_p2p.errors import UsageError


class OptimizerList(torch.optim.Optimizer):
    """Steps all of `optimizers`, in order. Groups are those of all, one after the other, and a state dict is a list of theirs."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Raises: UsageError, if there is none, or two of them hold the same parameter."""
        if not optimizers:
            raise UsageError("a list of optimizers is empty")
        held: set[int] = set()
        for i, optimizer in enumerate(optimizers):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise UsageError(
                    f"optimizer {i} of the list is a {type(optimizer).__name__}: a torch.optim.Optimizer is expected"
                )
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if own & held:
                raise UsageError(
                    f"optimizer {i} of the list holds a parameter that one before it holds too: it would be stepped twice"
                )
            held |= own
        self.optimizers = tuple(optimizers)
        super().__init__([p for o in optimizers for group in o.param_groups for p in group["params"]], {})
        # Those of the members themselves: a schedule that sets a rate here sets it there.
        self.param_groups = [group for o in optimizers for group in o.param_groups]
        self._closed = True

    @property
    def state(self) -> Any:
        """Of all of them, to be read."""
        return {p: own for o in self.optimizers for p, own in o.state.items()}

    @state.setter
    def state(self, _: Any) -> None:  # what torch's constructor sets is empty
        return

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "_closed"):
            raise UsageError("add parameters to one of the optimizers, before they are put together")
        super().add_param_group(param_group)

    @property
    def warming_up(self) -> bool:
        """One of them wants its pushes precise."""
        return any(getattr(o, "warming_up", False) for o in self.optimizers)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each; the closure is evaluated once, by the first."""
        result = self.optimizers[0].step(closure)
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises: UsageError, if it is of another number of optimizers."""
        saved = state_dict.get("optimizers", ())
        if len(saved) != len(self.optimizers):
            raise UsageError(f"a state of {len(saved)} optimizers, there are {len(self.optimizers)}")
        for optimizer, state in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]

    def __repr__(self) -> str:
        return f"{list(self.optimizers)!r}"


def as_one(inner: Any) -> Any:
    """A list or tuple of optimizers as one optimizer; anything else as it is."""
    return OptimizerList(inner) if isinstance(inner, list | tuple) and not isinstance(inner, str) else inner


PROPORTIONAL = (torch.optim.SGD, torch.optim.ASGD, torch.optim.LBFGS)


def is_proportional(inner: torch.optim.Optimizer) -> bool:
    """Whether its steps are as long as its gradients say. All others normalize them: Adam and its kin, Muon, Adafactor, sign.

    What is not known is taken for one that normalizes, as nearly all that are written today do.
    """
    parts = inner.optimizers if isinstance(inner, OptimizerList) else (inner,)
    return all(isinstance(part, PROPORTIONAL) for part in parts)
