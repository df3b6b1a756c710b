"""The memory of one block of a model: there while the block is at work, gone otherwise.

The block's parameters are views of one flat tensor, whose memory is given back and taken again. Tensors that autograd keeps for
the backward pass are views of it as well: they see the weights again once these are pulled again, as in FSDP (Zhao et al.,
2304.11277, section 4.2).
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from legion_p2p.core.sharding.plan import UnitBlock
from legion_p2p.errors import NonFiniteError
from legion_p2p.tensor.body import is_finite


class BlockStorage:
    """Parameters that are pulled, used and freed together."""

    def __init__(self, block: UnitBlock, parameters: Sequence[tuple[nn.Parameter, Sequence[int]]], device: torch.device) -> None:
        """`parameters`: all of the model's, in the order of the run, and their shapes; those of the block lose their values."""
        self.block = block
        self.units = block.units
        first = {piece.param: None for unit in block.units for piece in unit.pieces}
        self.parameters = [parameters[i][0] for i in first]
        self._flat = torch.empty(block.numel, dtype=torch.float32, device=device)
        self._n_bytes = self._flat.untyped_storage().nbytes()
        at = 0
        for parameter, shape in (parameters[i] for i in first):
            # `.data` twice: a view would share the counter by which autograd notices that weights were overwritten
            parameter.data = self._flat.data[at : at + prod(shape)].view(shape).data
            at += parameter.numel()
        self.free()

    @property
    def is_here(self) -> bool:
        return self._flat.untyped_storage().nbytes() > 0

    def free(self) -> None:
        """Give the memory back."""
        self._flat.untyped_storage().resize_(0)

    @torch.no_grad()
    def fill(self, weights: Sequence[Tensor]) -> None:
        """Take memory, and put these weights there: one tensor for each unit."""
        self._flat.untyped_storage().resize_(self._n_bytes)
        at = 0
        for one in weights:
            self._flat[at : at + len(one)].copy_(one)
            at += len(one)

    @torch.no_grad()
    def take_gradients(self) -> list[Tensor]:
        """The gradients of each unit, 1-D fp32 on the CPU; the parameters have none afterwards. What has none counts as zeros.

        Raises: NonFiniteError.
        """
        flat = torch.zeros(self.block.numel, dtype=torch.float32, device="cpu")
        at = 0
        for parameter in self.parameters:
            if parameter.grad is not None:
                flat[at : at + parameter.numel()].copy_(parameter.grad.reshape(-1))
                parameter.grad = None
            at += parameter.numel()
        if not is_finite(flat):
            raise NonFiniteError(f"the gradients of {self.block.name or 'the model'} are not finite: training has diverged here")
        return list(torch.split(flat, [unit.numel for unit in self.units]))
