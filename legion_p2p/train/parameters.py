"""What of a model is in a run, and what stands beside it.

In the run are the parameters that require gradients when the optimizer is wrapped, and, where the run averages them, the buffers
of floats. Beside it are frozen parameters and the other float buffers: they are the same at all members as far as their digests
are compared when a peer joins.

Wrappers of models (torch.compile, DistributedDataParallel, activation checkpointing, ...) put a word of their own into the names
of parameters. Those words do not count: a wrapped model fits a run that was created with a plain one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from legion_p2p.core.plan import FIXED_DIGEST_BYTES, FixedSpec, ParamSpec, check_fixed
from legion_p2p.core.run import RunSpec
from legion_p2p.tensor.flatten import FlatView, all_of

Named = Sequence[tuple[str, Tensor]]

WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_fsdp_wrapped_module",  # FullyShardedDataParallel
        "_forward_module",  # Lightning Fabric
    }
)
"""Parts of names that only wrappers make."""
WRAPPED_AS_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
"""Wrappers whose word is `module`, which models use as well."""


class ModelView:
    """The tensors of one model, by the names that they have in a run."""

    def __init__(self, model: nn.Module | Iterable[tuple[str, Tensor]]) -> None:
        if isinstance(model, nn.Module):
            inside = {path for path, module in model.named_modules() if isinstance(module, WRAPPED_AS_MODULE)}
            parameters: list[tuple[str, Tensor]] = [*model.named_parameters()]
            buffers = _kept_buffers(model)
        else:
            inside, parameters, buffers = set(), list(model), []
        names = plain_names([name for name, _ in [*parameters, *buffers]], inside)
        tensors = [tensor for _, tensor in [*parameters, *buffers]]
        named = list(zip(names, tensors, strict=True))
        self.trained: Named = [(name, p) for name, p in named[: len(parameters)] if p.requires_grad]
        self.frozen: Named = [(name, p) for name, p in named[: len(parameters)] if not p.requires_grad]
        self.buffers: Named = [(name, b) for name, b in named[len(parameters) :] if b.is_floating_point() and b.numel()]
        self._fixed: tuple[FixedSpec, ...] | None = None

    def name_of(self, tensor: Tensor) -> str | None:
        """Its name in the model."""
        return next((name for name, own in (*self.trained, *self.frozen, *self.buffers) if own is tensor), None)

    def in_run(self, untrained: str) -> Named:
        """What is in a run that treats the untrained tensors in this way."""
        averaged = [(n, b) for n, b in self.buffers if bool(torch.isfinite(b).all())] if untrained == "average" else []
        return [*self.trained, *averaged]

    def fixed(self) -> tuple[FixedSpec, ...]:
        """Digests of what is not trained, as it is when this is called first."""
        if self._fixed is None:
            beside = (*self.frozen, *self.buffers)
            n_of = Counter(name for name, _ in beside)
            self._fixed = tuple(fixed_spec(name, tensor) for name, tensor in beside if n_of[name] == 1)
        return self._fixed

    def fit(self, spec: RunSpec) -> tuple[ParamSpec, ...]:
        """The parameters with which this model joins a run. Raises: IncompatibleModelError, naming what else differs."""
        if spec.round.untrained != "own":
            averaged = {name for name, _ in self.buffers} if spec.round.untrained == "average" else set()
            check_fixed([own for own in self.fixed() if own.name not in averaged], spec.fixed)
        return param_specs(FlatView(self.in_run(spec.round.untrained)))

    def fit_by_shape(self) -> Callable[[RunSpec], tuple[ParamSpec, ...]]:
        """`fit` into a sharded run, without the model: it can be freed meanwhile."""
        shapes, fixed = param_specs(FlatView(self.trained)), self.fixed()

        def fit(spec: RunSpec) -> tuple[ParamSpec, ...]:
            if spec.round.untrained != "own":
                check_fixed(fixed, spec.fixed)
            return shapes

        return fit


def _kept_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Those that a state_dict holds. The others are computed when a model is made, perhaps with other bits on each machine."""
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]


def plain_names(names: Sequence[str], wrapped_as_module: Iterable[str] = ()) -> list[str]:
    """Names without what wrappers put into them. `wrapped_as_module`: paths of modules that wrap another as their `module`."""
    inside = {f"{path}.module" if path else "module" for path in wrapped_as_module}
    plain = []
    for name in names:
        parts = name.split(".")
        kept = [part for i, part in enumerate(parts) if part not in WRAPPERS and ".".join(parts[: i + 1]) not in inside]
        plain.append(".".join(kept))
    while plain and all(name.startswith("module.") for name in plain):  # pairs of names and tensors do not tell what wraps them
        plain = [name.removeprefix("module.") for name in plain]
    return plain


def fixed_spec(name: str, tensor: Tensor) -> FixedSpec:
    """Its digest: of the bytes where they are, and of the type that they are in."""
    data = all_of(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    whole = hashlib.sha256(str(tensor.dtype).encode())
    whole.update(data.data)
    return FixedSpec(name, tuple(tensor.shape), whole.digest()[:FIXED_DIGEST_BYTES])


def param_specs(view: FlatView) -> tuple[ParamSpec, ...]:
    """Names and shapes as they stand in a run's specification."""
    return tuple(ParamSpec(name, shape) for name, shape in zip(view.names, view.shapes, strict=True))


def trainable(model: nn.Module | Iterable[tuple[str, Tensor]]) -> Named:
    """The parameters that a run is about: those that require gradients, in the model's order, tied ones once."""
    return ModelView(model).trained
