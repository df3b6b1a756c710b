"""1-bit Adam (Tang et al., 2102.02888): Adam until its variance has settled, then momentum over a frozen variance.

From then on a step is linear in the gradients: `-lr * m / sqrt(v)` with v constant, so that the mean of several peers' changes is
the change that the mean of their momenta makes, and what a peer pushes *is* its momentum, each element scaled by a constant. So
it may be sent as signs with error feedback (codec `sign`). Before, pushes go in the run's `warmup_codec`: while v changes, an
error in a push is an error in a direction that feedback cannot take back.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from legion_p2p.errors import UsageError

SETTLED = 0.96  # the paper's threshold: the variance's norm, now against 1 / (1 - beta2) steps ago


class OneBitAdam(torch.optim.Optimizer):
    """AdamW whose variance freezes once it has settled, or at `freeze_step`. State is AdamW's: two tensors for each parameter."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        least_warmup: int = 100,
        freeze_step: int = 0,
    ) -> None:
        """`least_warmup`: not frozen before, whatever the variance does (the learning rate's own warm-up should be over).

        `freeze_step` 0: frozen when settled. Raises: UsageError, if a rate is out of its range.
        """
        if not (min(lr, eps, weight_decay) >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise UsageError(f"lr {lr}, eps {eps}, weight_decay {weight_decay} must be 0 or more, betas {betas} 0 to 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.least_warmup = least_warmup
        self.freeze_step = freeze_step
        self.n_steps = 0
        self.frozen_at: int | None = None
        """The step after which the variance no longer changed."""
        self._norms: deque[float] = deque(maxlen=1 + round(1 / (1 - betas[1])))

    @property
    def warming_up(self) -> bool:
        """The variance still changes: pushes should be precise."""
        return self.frozen_at is None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A parameter without a gradient stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.n_steps += 1
        norm = 0.0
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                mean, square = state["exp_avg"].lerp_(p.grad, 1 - beta1), state["exp_avg_sq"]
                if self.warming_up:
                    square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                    norm += float(square.sum()) / (1 - beta2**self.n_steps)
                size = (square / (1 - beta2 ** (self.frozen_at or self.n_steps))).sqrt_().add_(group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(mean / size, alpha=-group["lr"] / (1 - beta1**self.n_steps))
        if self.warming_up and self._should_freeze(norm):
            self.frozen_at = self.n_steps
        return loss

    def _should_freeze(self, norm: float) -> bool:
        if self.freeze_step:
            return self.n_steps >= self.freeze_step
        self._norms.append(norm)
        before = self._norms[0]
        if self.n_steps < self.least_warmup or len(self._norms) < (self._norms.maxlen or 0):
            return False
        return min(before, norm) >= SETTLED * max(before, norm)

    def state_dict(self) -> dict[str, Any]:
        """With when it froze."""
        return {**super().state_dict(), "onebit": {"n_steps": self.n_steps, "frozen_at": self.frozen_at}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rest = dict(state_dict)
        own = rest.pop("onebit", {"n_steps": 0, "frozen_at": None})
        super().load_state_dict(rest)
        self.n_steps, self.frozen_at = own["n_steps"], own["frozen_at"]
        self._norms.clear()
