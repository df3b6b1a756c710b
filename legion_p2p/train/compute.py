"""How the gradients of one step are computed: in which precision, in how many parts, compiled or not.

Parameters and optimizer stay in fp32 whatever the precision is, so members of one run may each choose their own.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from legion_p2p.config import Training
from legion_p2p.errors import UsageError
from legion_p2p.observe.memory import wanted_memory
from legion_p2p.train.language_model import LanguageModel


def choose_device(name: str) -> str:
    """Raises: UsageError, if there is no such device here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float32, device=name)
    except (RuntimeError, AssertionError) as bad:
        raise UsageError(f"device {name!r}: {str(bad).splitlines()[0]}") from bad
    return name


class Compute:
    """One model on one device."""

    def __init__(
        self, model: LanguageModel, device: str, job: Training, *, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        """`backend`: of torch.compile. Raises: UsageError, if the model or the device cannot do what `job` asks for."""
        self.model = model
        self.device = device
        self._n_parts = job.accumulate
        self._is_half = job.precision == "bf16"
        self._is_compiled = job.compile
        model.module.to(device)
        if job.activation_checkpointing:
            model.recompute_activations()
        if self._is_half:
            self._check_half()
        if job.compile:
            model.module.compile(backend=backend)  # in place: the parameters keep their names

    def precise(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model computes."""
        if not self._is_half:
            return contextlib.nullcontext()
        return torch.autocast(self.device.split(":")[0], torch.bfloat16)

    def loss(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """The mean loss over a batch, in nats per token.

        Raises: UsageError, if the model cannot be compiled here.
        """
        try:
            with self.precise():
                return self.model.loss(x_BT.to(self.device), y_BT.to(self.device))
        except RuntimeError as bad:
            if not self._is_compiled or not _is_of_compiler(bad):
                raise
            raise UsageError(f"torch.compile failed, train without --compile: {_first_lines(bad)}") from bad

    def backward(self, x_BT: Tensor, y_BT: Tensor, n_windows: int = 0) -> float:
        """Add the gradients of the batch's mean loss to the parameters'; that loss.

        `n_windows`: of the whole batch, where these are a part of it; both are then this part's share. Windows are computed in
        parts, one after the other, and only one part's activations are held at a time.
        """
        total = 0.0
        n_windows = n_windows or len(x_BT)
        for x, y in zip(x_BT.tensor_split(self._n_parts), y_BT.tensor_split(self._n_parts), strict=True):
            if len(x):
                loss = self.loss(x, y) * (len(x) / n_windows)
                torch.autograd.backward(loss)
                total += float(loss.detach())
        return total

    def _check_half(self) -> None:
        kind = self.device.split(":")[0]
        if kind == "cuda" and not torch.cuda.is_bf16_supported():
            raise UsageError(f"--precision bf16: {torch.cuda.get_device_name(self.device)} has no bf16; train with fp32")


def memory_advice(bad: BaseException, job: Training, device: str, batch: int, n_steps: int) -> str:
    """What happened, where training on `device` ran out of memory, and what takes less than `job` does."""
    parts = min(batch, 2 * job.accumulate)
    choices = [
        f"--accumulate {parts}" if parts > job.accumulate else "",
        "" if job.activation_checkpointing else "--activation-checkpointing",
        "" if job.precision == "bf16" else "--precision bf16",
        "" if device == "cpu" else "--device cpu",
    ]
    wanted = wanted_memory(bad)
    told = f" ({wanted} more were asked for)" if wanted else ""
    helps = ", ".join(filter(None, choices)) or "a run of a smaller model"
    return f"training on {device} ran out of memory after {n_steps} steps{told}; less takes: {helps}"


def _is_of_compiler(bad: RuntimeError) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(bad, TorchDynamoException)


def _first_lines(bad: BaseException) -> str:
    """The compiler says on one line what failed, and on the next why."""
    lines = [line.strip() for line in str(bad).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(bad).__name__
