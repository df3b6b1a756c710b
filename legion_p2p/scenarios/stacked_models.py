"""Many peers' models as one tensor with a row for each, and the local step of all of them at once, on any device.

The same steps as in tasks.py, from the same examples; sums may be added up in another order.
Shapes: P = peers, E = elements of a parameter vector, B = examples of a batch, I = inputs, H = hidden units.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from legion_p2p.core.plan import ParamSpec
from legion_p2p.errors import UsageError
from legion_p2p.scenarios.scenario import SimTask
from legion_p2p.scenarios.tasks import CLIP, N_INPUTS, Draw, Quadratic, Regression, TextTask
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.muon import RMS_OF_ADAMW, MuonAdamW, orthogonalize
from legion_p2p.train.parameters import param_specs

MAX_TOGETHER = {"cpu": 32, "cuda": 512}  # peers of which the activations are in memory at once; halved where that is too many
ROUNDING = 1e-6  # of torch's clip_grad_norm_


class StackedTask(Protocol):
    """A task of which many peers take a step together."""

    params: tuple[ParamSpec, ...]
    start: Tensor
    """Parameters at the start: 1-D fp32 on the CPU."""
    n_slots: int
    """Tensors of the optimizer's, as large as the parameters."""

    def draw(self, name: str) -> Draw:
        """The examples of the next step of the peer of this name."""

    def step(self, theta_PE: Tensor, slots: Sequence[Tensor], ages_P: Tensor, draws: Sequence[Tensor]) -> None:
        """A step of each, in place. `ages_P`: how many steps each has made since its optimizer was new."""

    def loss(self, theta_E: Tensor) -> float:
        """Of one model's parameters."""


def stacked_task(task: SimTask, seed: int, device: str) -> StackedTask:
    """Raises: UsageError, where nothing is trained."""
    match task.kind:
        case "regression":
            return StackedRegression(task, seed)
        case "quadratic":
            return StackedQuadratic(task, seed)
        case "text":
            return StackedText(task, seed, device)
        case "none":
            raise UsageError("in this graph nothing was trained: choose what to train along it, as in --set task.kind=regression")


class StackedRegression:
    """See `tasks.Regression`."""

    n_slots = 0

    def __init__(self, task: SimTask, seed: int) -> None:
        self._task = task
        self._single = Regression(task, seed)
        self.start = self._single.start
        self.params: tuple[ParamSpec, ...] = (ParamSpec("w", (self.start.numel(),)),)
        self.draw = self._single.draw

    def step(self, theta_PE: Tensor, slots: Sequence[Tensor], ages_P: Tensor, draws: Sequence[Tensor]) -> None:
        x_PBI, y_PB = draws
        n_peers, size = len(theta_PE), self._task.size
        weights_PIH = theta_PE[:, : N_INPUTS * size].view(n_peers, N_INPUTS, size)
        bias_PH, out_PH = theta_PE[:, N_INPUTS * size : -size], theta_PE[:, -size:]
        active_PBH = torch.tanh(torch.baddbmm(bias_PH.unsqueeze(1), x_PBI, weights_PIH))
        said_PB = torch.bmm(active_PBH, out_PH.unsqueeze(2)).squeeze(2)
        error_PB = (said_PB - y_PB) * (-2 * self._task.learning_rate / self._task.batch)
        inner_PBH = error_PB.unsqueeze(2) * out_PH.unsqueeze(1) * (1 - active_PBH * active_PBH)
        out_PH += torch.bmm(error_PB.unsqueeze(1), active_PBH).squeeze(1)
        weights_PIH += torch.bmm(x_PBI.mT, inner_PBH)
        bias_PH += inner_PBH.sum(dim=1)

    def loss(self, theta_E: Tensor) -> float:
        return self._single.loss(theta_E.cpu())


class StackedQuadratic:
    """See `tasks.Quadratic`."""

    n_slots = 0

    def __init__(self, task: SimTask, seed: int) -> None:
        self._rate = task.learning_rate
        self._single = Quadratic(task, seed)
        self.start = self._single.start
        self.params: tuple[ParamSpec, ...] = (ParamSpec("w", (self.start.numel(),)),)
        self.draw = self._single.draw

    def step(self, theta_PE: Tensor, slots: Sequence[Tensor], ages_P: Tensor, draws: Sequence[Tensor]) -> None:
        optimum_PE, noise_PE = draws
        theta_PE -= self._rate * (theta_PE - optimum_PE + noise_PE)

    def loss(self, theta_E: Tensor) -> float:
        return self._single.loss(theta_E.cpu())


class StackedText:
    """See `tasks.TextTask`: the built-in GPT, by Muon and AdamW."""

    n_slots = 2

    def __init__(self, task: SimTask, seed: int, device: str) -> None:
        self._single = TextTask(task, seed)
        self._model = self._single.fresh_model().to(device)
        view = FlatView(self._model.named_parameters())
        self.start = view.snapshot()
        self.params = param_specs(view)
        self.draw = self._single.draw
        self._inner = StackedMuonAdamW(self._model, MuonAdamW.of(self._model, task.learning_rate))
        self._ranges = list(zip(view.names, view.shapes, view.starts, strict=False))
        self._held_out = [(x.to(device), y.to(device)) for x, y in self._single.held_out()]
        self._gradients: Callable[[Tensor, Tensor], Tensor] = torch.func.vmap(torch.func.grad(self._loss_of_windows))

    def step(self, theta_PE: Tensor, slots: Sequence[Tensor], ages_P: Tensor, draws: Sequence[Tensor]) -> None:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no rule for vmap
            gradients_PE = self._gradients(theta_PE, draws[0])
        norms_P1 = torch.linalg.vector_norm(gradients_PE, dim=1, keepdim=True)
        gradients_PE *= (CLIP / (norms_P1 + ROUNDING)).clamp_max(1.0)
        self._inner.step(theta_PE, gradients_PE, slots, ages_P)

    @torch.no_grad()
    def loss(self, theta_E: Tensor) -> float:
        parts = self._parts(theta_E.to(self._held_out[0][0].device))
        losses = [float(torch.func.functional_call(self._model, parts, (x, y))[1]) * len(x) for x, y in self._held_out]
        return sum(losses) / sum(len(x) for x, _ in self._held_out)

    def _loss_of_windows(self, theta_E: Tensor, windows_BT: Tensor) -> Tensor:
        inputs_BT, targets_BT = windows_BT[:, :-1], windows_BT[:, 1:]
        loss: Tensor = torch.func.functional_call(self._model, self._parts(theta_E), (inputs_BT, targets_BT))[1]
        return loss

    def _parts(self, theta_E: Tensor) -> dict[str, Tensor]:
        """The parameters by their names."""
        return {name: theta_E[at : at + math.prod(shape)].view(shape) for name, shape, at in self._ranges}


class StackedMuonAdamW:
    """`train.muon.MuonAdamW` over rows. Slots: the momentum of matrices and the mean of the rest; the square of the rest."""

    def __init__(self, model: nn.Module, like: MuonAdamW) -> None:
        """`like`: the optimizer of one peer, whose groups say what is done with which parameter."""
        places = {}
        at = 0
        for p in model.parameters():
            places[id(p)] = at
            at += p.numel()
        self._muon: dict[tuple[int, int], list[_Matrix]] = defaultdict(list)
        self._adamw: list[tuple[int, int]] = []
        self._rates: dict[str, Any] = like.defaults
        for group in like.param_groups:
            for p in group["params"]:
                start = places[id(p)]
                if not group["parts"]:
                    self._adamw.append((start, start + p.numel()))
                    continue
                rows, columns = len(p) // group["parts"], p.shape[1]
                for part in range(group["parts"]):
                    first = start + part * rows * columns
                    self._muon[min(rows, columns), max(rows, columns)].append(_Matrix(first, rows, columns))

    @torch.no_grad()
    def step(self, theta_PE: Tensor, gradients_PE: Tensor, slots: Sequence[Tensor], ages_P: Tensor) -> None:
        for matrices in self._muon.values():
            self._turn(matrices, theta_PE, gradients_PE, slots[0])
        rate, (beta1, beta2) = self._rates["lr"] * self._rates["lr_factor"], self._rates["betas"]
        steps_P1 = (ages_P + 1).to(theta_PE.dtype).unsqueeze(1)
        for start, end in self._adamw:
            theta_PR, gradient_PR = theta_PE[:, start:end], gradients_PE[:, start:end]
            mean_PR = slots[0][:, start:end].lerp_(gradient_PR, 1 - beta1)
            square_PR = slots[1][:, start:end].mul_(beta2).addcmul_(gradient_PR, gradient_PR, value=1 - beta2)
            size_PR = (square_PR / (1 - beta2**steps_P1)).sqrt_().add_(self._rates["eps"])
            theta_PR.mul_(1 - rate * self._rates["weight_decay"])
            theta_PR.sub_(rate * mean_PR / size_PR / (1 - beta1**steps_P1))

    def _turn(self, matrices: "list[_Matrix]", theta_PE: Tensor, gradients_PE: Tensor, momentum_PE: Tensor) -> None:
        """A step of Muon on all matrices of one shape."""
        momentum, wanted = self._rates["momentum"], []
        for matrix in matrices:
            gradient_PRC = matrix.of(gradients_PE)
            average_PRC = matrix.of(momentum_PE).lerp_(gradient_PRC, 1 - momentum)
            towards_PRC = torch.lerp(gradient_PRC, average_PRC, momentum)
            wanted.append(towards_PRC if matrix.is_wide else towards_PRC.mT)
        steps = torch.split(orthogonalize(torch.cat(wanted)), len(theta_PE))
        for matrix, step_PRC in zip(matrices, steps, strict=True):
            theta_PRC = matrix.of(theta_PE)
            theta_PRC.mul_(1 - self._rates["lr"] * self._rates["weight_decay"])
            factor = self._rates["lr"] * RMS_OF_ADAMW * math.sqrt(max(matrix.rows, matrix.columns))
            theta_PRC.sub_(step_PRC if matrix.is_wide else step_PRC.mT, alpha=factor)


class _Matrix:
    """Where a matrix lies in a parameter vector."""

    def __init__(self, start: int, rows: int, columns: int) -> None:
        self._start = start
        self.rows = rows
        self.columns = columns
        self.is_wide = rows <= columns

    def of(self, x_PE: Tensor) -> Tensor:
        """The matrices in all rows: a view."""
        end = self._start + self.rows * self.columns
        return x_PE[:, self._start : end].view(len(x_PE), self.rows, self.columns)


class Stack:
    """The parameters of all peers, where each one's untrained change began, and their optimizers' states."""

    def __init__(self, task: StackedTask, n_peers: int, device: str) -> None:
        self._task = task
        self._device = device
        self._together = MAX_TOGETHER.get(device.partition(":")[0], MAX_TOGETHER["cpu"])
        n_elements = task.start.numel()
        self._held_at = device if self._fits(n_peers * n_elements * 4 * (2 + task.n_slots)) else "cpu"
        zeros = [torch.zeros(n_peers, n_elements, dtype=torch.float32, device=self._held_at) for _ in range(2 + task.n_slots)]
        self.theta_PE, self.base_PE, *self._slots = zeros
        self._ages_P = torch.zeros(n_peers, dtype=torch.int64, device=self._held_at)

    @property
    def held_at(self) -> str:
        """The device of the tensors: main memory, where that of the accelerator is too small for all."""
        return self._held_at

    def renew(self, row: int) -> None:
        """A new peer, which has made no step."""
        for slot in self._slots:
            slot[row].zero_()
        self._ages_P[row] = 0

    @torch.no_grad()
    def step(self, rows: Sequence[int], draws: Sequence[Draw]) -> None:
        """A local step of each of these."""
        at = 0
        while at < len(rows):
            now = slice(at, at + self._together)
            try:
                self._step(torch.as_tensor(rows[now], dtype=torch.int64, device=self._held_at), draws[now])
            except torch.OutOfMemoryError:
                if self._together == 1:
                    raise
                self._together //= 2  # nothing has been written back
                torch.cuda.empty_cache()
                continue
            at += len(rows[now])

    def _step(self, rows_P: Tensor, draws: Sequence[Draw]) -> None:
        stacked = [torch.from_numpy(np.stack(parts)).to(self._device) for parts in zip(*draws, strict=True)]
        theta_PE = self.theta_PE[rows_P].to(self._device)
        slots = [slot[rows_P].to(self._device) for slot in self._slots]
        self._task.step(theta_PE, slots, self._ages_P[rows_P].to(self._device), stacked)
        for whole, part in zip((self.theta_PE, *self._slots), (theta_PE, *slots), strict=True):
            whole[rows_P] = part.to(self._held_at)
        self._ages_P[rows_P] += 1

    def _fits(self, n_bytes: int) -> bool:
        if not self._device.startswith("cuda"):
            return True
        free, _ = torch.cuda.mem_get_info(self._device)
        return n_bytes < free // 2
