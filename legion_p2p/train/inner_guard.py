"""Watching the inner optimizer: weights that move where the run does not see it are noticed, and what moves them is named.

a parameter outside the run gets a gradient     it would train at this peer alone
step() is called on the inner optimizer         the step would not count, and would not be pushed
another method of it moves the weights          the same (SAM's first_step and second_step, ScheduleFree's eval)
the step writes back a copy of its own          every update of the run would be undone, and the undoing pushed as training
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from legion_p2p.errors import UsageError
from legion_p2p.tensor.flatten import FlatView, is_spread

SAMPLED = 1 << 12  # elements of a tensor that are compared: code that moves weights moves more than one in a thousand
MAX_WALKED = 200_000  # objects inside an optimizer that are looked at for copies: two states of 20,000 parameters, and dicts
MAX_DEPTH = 6
STRIKES = 2  # updates in a row that were undone, until the optimizer is refused: one may be a step that happens to go back

NameOf = Callable[[Tensor], str | None]


class InnerGuard:
    """Of one inner optimizer and the parameters of a run."""

    def __init__(self, inner: torch.optim.Optimizer, view: FlatView, name_of: NameOf) -> None:
        """Where processes hold parts of the parameters, values are not compared: looking at them is a collective."""
        self._is_spread = any(is_spread(p) for p in view.parameters)
        self._inner = inner
        self._view = view
        self._name_of = name_of
        self._inside = {id(p) for p in view.parameters}
        self._outside: list[Tensor] = []
        self._n_held = -1
        self._stepping = False
        self._copies = CopyWatch(inner)
        members = [inner, *getattr(inner, "optimizers", ())]
        self._hooks = [
            m.register_step_pre_hook(self._refuse_direct_step) for m in members if hasattr(m, "_optimizer_step_pre_hooks")
        ]

    def release(self) -> None:
        """The inner optimizer is on its own from now on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def step(self, closure: Callable[[], Any] | None) -> Any:
        """Let the inner optimizer step.

        Raises: UsageError, if a parameter that is not in the run has a gradient, before anything moves; or if the step wrote back
        a copy of the parameters from before the last updates.
        """
        self._check_outside()
        if not self._is_spread:
            self._copies.before_step()
        self._stepping = True
        try:
            result = self._inner.step() if closure is None else self._inner.step(closure)
        finally:
            self._stepping = False
        if closure is not None:
            self._check_outside()
        if not self._is_spread:
            self._copies.after_step()
        return result

    def updated(self) -> None:
        """The run has moved the parameters since the last step."""
        self._copies.updated()

    def attribute(self, name: str) -> Any:
        """What the inner optimizer has under this name; a method of its own is watched while it runs."""
        value = getattr(self._inner, name)
        if name.startswith("_") or hasattr(torch.optim.Optimizer, name) or getattr(value, "__self__", None) is not self._inner:
            return value

        def watched(*args: Any, **more: Any) -> Any:
            before = self._fingerprint()
            self._stepping = True
            try:
                result = value(*args, **more)
            finally:
                self._stepping = False
            if self._hooks and self._fingerprint() != before:
                raise UsageError(
                    f"{type(self._inner).__name__}.{name} moved the parameters, but in a run only step() may: what moves them "
                    f"elsewhere is not counted. Let one step do all of it: opt.step(closure), with a closure that computes the "
                    f"loss and its gradients"
                )
            return result

        return watched

    def _check_outside(self) -> None:
        groups = self._inner.param_groups
        n_held = sum(len(group["params"]) for group in groups)
        if n_held != self._n_held:
            self._n_held = n_held
            self._outside = [p for group in groups for p in group["params"] if id(p) not in self._inside]
        for p in self._outside:
            if p.grad is not None:
                raise UsageError(
                    f"{self._describe(p)} has a gradient and is not in the run: it would train at this peer alone. The "
                    f"parameters of a run are those that require gradients when the optimizer is wrapped: wrap it after "
                    f"unfreezing, or freeze it (requires_grad_(False)), or train it with an optimizer of its own"
                )

    def _describe(self, p: Tensor) -> str:
        name = self._name_of(p)
        if name is not None:
            return f"parameter {name}"
        for i, group in enumerate(self._inner.param_groups):
            for j, held in enumerate(group["params"]):
                if held is p:
                    return f"parameter {j} of the inner optimizer's group {i}, of shape {list(p.shape)},"
        return f"a parameter of shape {list(p.shape)}"

    def _refuse_direct_step(self, *_: Any) -> None:
        if self._hooks and not self._stepping:
            raise UsageError(
                "step() was called on the optimizer inside: the run would not see that step. Call it on the legion_p2p optimizer "
                "that wraps it; after its close() the one inside is free"
            )

    def _fingerprint(self) -> list[object]:
        return [] if self._is_spread else [(p.data_ptr(), _sample(p).tobytes()) for p in self._view.parameters]


class CopyWatch:
    """Finds an optimizer that keeps the parameters a second time, such as in fp32, and writes that back at each step.

    Such a copy differs from the parameter after an update of the run, and is equal to it after the step; and the parameter is
    then near to where the copy was, not to where the update had brought it: an optimizer that only remembers is left alone.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._inner = inner
        self._n_updates = 0
        self._look_at = 1
        self._is_due = False
        self._watched: list[tuple[Tensor, Callable[[], Tensor], Tensor, Tensor]] = []
        self._strikes = 0

    def updated(self) -> None:
        """The parameters were moved from outside: at the first updates, and then ever more rarely, the next step is watched."""
        if self._is_due:
            return
        self._n_updates += 1
        if self._n_updates >= self._look_at or self._strikes:
            self._look_at = max(self._look_at, self._n_updates) * 2 if self._n_updates > 4 else self._n_updates + 1
            self._is_due = True

    def before_step(self) -> None:
        if not self._is_due:
            return
        params = [p for group in self._inner.param_groups for p in group["params"]]
        self._watched = []
        for copy, read in _copies_in(self._inner, params):
            copy_K, param_K = _sampled(copy), _sampled(read())
            if not torch.equal(copy_K.to(param_K.dtype), param_K):
                self._watched.append((copy, read, copy_K.clone(), param_K.clone()))

    def after_step(self) -> None:
        """Raises: UsageError."""
        if not self._is_due:
            return
        self._is_due = False
        watched, self._watched = self._watched, []
        undone = False
        for copy, read, copy_before_K, param_before_K in watched:
            param_K = _sampled(read())
            if torch.equal(_sampled(copy).to(param_K.dtype), param_K):
                back = _distance(param_K, copy_before_K)
                undone |= back < _distance(param_K, param_before_K)
        self._strikes = self._strikes + 1 if undone else 0
        if self._strikes >= STRIKES:
            raise UsageError(
                f"{type(self._inner).__name__} keeps a copy of the parameters and writes it back at each step: the updates of "
                f"the run are lost, and pushed back as if that were training. Use an optimizer that holds moments only, and fp32 "
                f"parameters under torch.autocast"
            )


def _copies_in(inner: torch.optim.Optimizer, params: list[Tensor]) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
    """Tensors inside an optimizer that are as long as a parameter, or all of a group, or all; and how to read those."""
    own = {p.untyped_storage().data_ptr() for p in params}
    readers: dict[int, list[Callable[[], Tensor]]] = {}
    for p in params:
        readers.setdefault(p.numel(), []).append(p.detach)
    for many in ([group["params"] for group in inner.param_groups] if len(inner.param_groups) > 1 else []) + [params]:
        if len(many) > 1:
            readers.setdefault(sum(p.numel() for p in many), []).append(lambda many=many: _flat(many))  # type: ignore[misc]
    for found in _tensors_in(inner):
        if found.is_floating_point() and found.numel() > 1 and found.untyped_storage().data_ptr() not in own:
            for read in readers.get(found.numel(), ()):
                yield found, read


def _tensors_in(root: object) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object through its attributes, containers and closures."""
    seen: set[int] = set()
    waiting: list[tuple[object, int]] = [(root, 0)]
    while waiting and len(seen) < MAX_WALKED:
        at, depth = waiting.pop()
        if id(at) in seen or depth > MAX_DEPTH or isinstance(at, nn.Module | type | str | bytes | int | float):
            continue
        seen.add(id(at))
        if isinstance(at, Tensor):
            yield at.detach()
        elif isinstance(at, np.ndarray):
            if at.dtype.kind == "f" and at.flags.writeable:
                yield torch.from_numpy(at)
        else:
            waiting += [(inside, depth + 1) for inside in _inside(at)]


def _inside(at: object) -> list[object]:
    if isinstance(at, dict):
        return list(at.values())
    if isinstance(at, list | tuple | set | frozenset):
        return list(at)
    inside: list[object] = []
    for cell in getattr(at, "__closure__", None) or ():
        try:
            inside.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    attributes = getattr(at, "__dict__", None)
    return [*inside, *attributes.values()] if isinstance(attributes, dict) else inside


def _flat(many: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in many])


def _sampled(x: Tensor) -> Tensor:
    """Some of it, evenly spaced, 1-D on the CPU."""
    flat = x.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].cpu()


def _sample(x: Tensor) -> Any:
    return _sampled(x).to(torch.float32).numpy()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm())
