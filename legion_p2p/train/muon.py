"""Muon for matrices, AdamW for the rest, as one optimizer.

Muon replaces a matrix's momentum by the nearest orthogonal matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon), so
that each of its directions moves equally far; `.2 * sqrt(larger side)` gives the step the size that AdamW's has, and lets the two
share learning rate and weight decay (Moonlight, Liu et al., 2502.16982, section 2.2). Embeddings, output matrices, biases and
norms stay with AdamW. Peers that each see small batches agree better on such steps than on AdamW's (MuLoCo, 2505.23725); what it
brings here is in docs/records/convergence.md.
"""

# Shape suffixes: S = matrices of one shape, stacked; R, C = rows and columns, R <= C.

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from legion_p2p.config.old_names import explains
from legion_p2p.errors import UsageError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at zero, and singular values end within about .7 to 1.2
ITERATIONS = 5
RMS_OF_ADAMW = 0.2  # of one AdamW update's elements, measured by Moonlight
TINY = 1e-7
EPS = 1e-8  # of AdamW, as torch has it; a group may be given another one
OUTPUT_NAMES = frozenset({"output", "unembed", "embed_out"})  # beside head, lm_head and the like


class MuonAdamW(torch.optim.Optimizer):
    """Up to three parameter groups: `matrices` (each 2-D) and `fused` by Muon, `others` by AdamW.

    `fused` are matrices that hold three of equal size below one another: query, key and value, which Muon should turn one by one.
    All take the group's `lr`, so a schedule that sets one rate for all groups fits; `others` multiply it by their `lr_factor`.
    Weight decay is decoupled. State has the parameters' type: one tensor for a matrix, two for each of the others.
    """

    @explains({"eps": 'opt.param_groups[...]["eps"]'})
    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 0.02,
        *,
        fused: Iterable[Tensor] = (),
        lr_factor: float = 1.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        """Raises: UsageError, if a rate is out of its range or one of `matrices` is not 2-D."""
        lowest = min(lr, lr_factor, weight_decay)
        if not (lowest >= 0 and all(0 <= beta < 1 for beta in (momentum, *betas))):
            raise UsageError(
                f"lr {lr}, lr_factor {lr_factor}, weight_decay {weight_decay} must be 0 or more, "
                f"momentum {momentum} and betas {betas} 0 or more and less than 1"
            )
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "parts": 1},
            {"params": list(fused), "parts": 3},
            {"params": list(others), "parts": 0},
        ]
        for group in groups[:2]:
            for p in group["params"]:
                if p.ndim != 2 or len(p) % group["parts"]:
                    what = "matrices" if group["parts"] == 1 else "matrices of three"
                    raise UsageError(f"{what} expected, got a parameter of shape {tuple(p.shape)}: put it among the others")
        rates = {"lr": lr, "lr_factor": lr_factor, "momentum": momentum, "betas": betas, "eps": EPS, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], rates)

    @classmethod
    def of(cls, model: nn.Module, lr: float = 0.02, **options: Any) -> "MuonAdamW":
        """For all parameters of `model` that require gradients, split by `split_parameters`."""
        matrices, fused, others = split_parameters(model)
        return cls(matrices, others, lr, fused=fused, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A parameter without a gradient stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["parts"] else self._adamw)(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        # one stack per shape: a small matrix by itself does not fill a machine
        stacks: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            stacks[(*sorted((len(p) // group["parts"], p.shape[1])), p.device, p.dtype)].append(p)
        for stack in stacks.values():
            wanted = [_wide(part) for p in stack for part in self._nesterov(p, group["momentum"]).chunk(group["parts"])]
            steps = torch.split(orthogonalize(torch.stack(wanted)), group["parts"])
            for p, step_SRC in zip(stack, steps, strict=True):
                rows, columns = len(p) // group["parts"], p.shape[1]
                step = (step_SRC if rows <= columns else step_SRC.mT).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * RMS_OF_ADAMW * math.sqrt(max(rows, columns)))

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        state, grad = self.state[p], p.grad
        assert grad is not None  # `step` leaves the others out
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        return torch.lerp(grad, average, momentum)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lr = group["lr"] * group["lr_factor"]
        for p in params:
            state, grad = self.state[p], p.grad
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] += 1
            mean = state["exp_avg"].lerp_(grad, 1 - beta1)
            square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            size = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(mean / size, alpha=-lr / (1 - beta1 ** state["step"]))


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(matrices, fused, others) for MuonAdamW: parameters that require gradients, in the model's order, tied ones once.

    Matrices are the 2-D ones, except embeddings, what is tied to one, and the output matrix: each row of those belongs to one
    token, and a rare token's should not move as far as a common one's. An output matrix is told by its module's name, for shapes
    do not tell; a fused one by the name "qkv", or as that of torch's MultiheadAttention.
    """
    apart, threefold = set(), set()
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        own = {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, nn.Embedding) or name.endswith("head") or name in OUTPUT_NAMES:
            apart |= own
        elif isinstance(module, nn.MultiheadAttention) or name == "qkv":
            threefold |= own
    matrices: list[nn.Parameter] = []
    fused: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in model.parameters():
        if p.requires_grad:
            is_matrix = p.ndim == 2 and id(p) not in apart
            is_fused = is_matrix and id(p) in threefold and p.shape[0] == 3 * p.shape[1]
            (fused if is_fused else matrices if is_matrix else others).append(p)
    return matrices, fused, others


def orthogonalize(x_SRC: Tensor) -> Tensor:
    """About U V' for each x = U S V', by Newton-Schulz iteration; (S, R, C) with R <= C. A zero matrix stays zero.

    In bf16 on a GPU, where that is many times as fast and changes no loss; as it comes on a CPU, which may have to emulate bf16.
    """
    a, b, c = COEFFICIENTS
    y_SRC = x_SRC / x_SRC.norm(dim=(1, 2), keepdim=True).clamp_min(TINY)
    if y_SRC.is_cuda:
        y_SRC = y_SRC.bfloat16()
    with torch.autocast(y_SRC.device.type, enabled=False):  # a step inside the caller's autocast block gives the same bits
        for _ in range(ITERATIONS):
            gram_SRR = torch.bmm(y_SRC, y_SRC.mT)
            y_SRC = torch.baddbmm(y_SRC, torch.baddbmm(gram_SRR, gram_SRR, gram_SRR, beta=b, alpha=c), y_SRC, beta=a)
    steps_SRC: Tensor = y_SRC.to(x_SRC.dtype)
    return steps_SRC


def _wide(x: Tensor) -> Tensor:
    return x if x.shape[0] <= x.shape[1] else x.mT
