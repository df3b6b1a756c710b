"""The blocks of a module, and whether a sharded run can cut them out of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from legion_p2p.core.sharding.plan import UnitPlan
from legion_p2p.errors import IncompatibleModelError, UsageError
from legion_p2p.train.parameters import ModelView
from legion_p2p.train.sharding.storage import BlockStorage


def storages_of(model: nn.Module, own: ModelView, plan: UnitPlan) -> list[BlockStorage]:
    """One for each block, with memory that is given back already."""
    parameters: list[tuple[nn.Parameter, Sequence[int]]] = []
    for name, tensor in own.trained:
        parameter = _with_device(model, name, tensor) if tensor.is_meta else tensor
        assert isinstance(parameter, nn.Parameter)
        if parameter.dtype != torch.float32:
            raise UsageError(f"parameter {name} is {parameter.dtype}: a sharded run trains torch.float32")
        parameters.append((parameter, tensor.shape))
    devices = {parameter.device for parameter, _ in parameters}
    if len(devices) > 1:
        raise UsageError(f"the model's parameters are on {', '.join(sorted(map(str, devices)))}: a sharded run has them on one")
    (device,) = devices
    return [BlockStorage(block, parameters, device) for block in plan.blocks]


def _with_device(model: nn.Module, name: str, meta: Tensor) -> nn.Parameter:
    """A parameter on the CPU in the place of one on the device "meta", wherever the model uses that."""
    fresh = nn.Parameter(torch.empty(0, dtype=meta.dtype, device="cpu"))
    for module in model.modules():
        for own_name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is meta:
                setattr(module, own_name, fresh)
    return fresh


def check_uses(model: nn.Module, own: ModelView, plan: UnitPlan) -> None:
    """Raises: IncompatibleModelError, where a block cannot be cut out of the model."""
    for name, tensor in (*own.frozen, *own.buffers):
        if tensor.is_meta:
            raise IncompatibleModelError(f"{name} is on the device meta and not trained in the run, so it has no values")
    block_of = {piece.param: block.name for block in plan.blocks for unit in block.units for piece in unit.pieces}
    ids = {id(tensor): block_of[i] for i, (_, tensor) in enumerate(own.trained)}
    modules = dict(model.named_modules())
    for block in plan.blocks:
        if block.name and block.name.removesuffix(".") not in modules:
            raise IncompatibleModelError(
                f"the model has no module {block.name.removesuffix('.')!r}: give the model without wrappers"
            )
    for path, module in modules.items():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            inside = ids.get(id(parameter), "")
            if not f"{path}.".startswith(inside):
                what = f"{path}.{parameter_name}" if path else parameter_name
                raise IncompatibleModelError(f"{what} is shared with block {inside!r}: a sharded run cannot cut such a model")
