"""The inner optimizers that `legion-peer` offers."""

import torch
from torch import nn

from legion_p2p.core.run import InnerSpec
from legion_p2p.train.muon import MuonAdamW
from legion_p2p.train.onebit import OneBitAdam


def inner_optimizer(spec: InnerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The one that a run's specification names, over all of `model`'s parameters."""
    betas = (spec.beta1, spec.beta2)
    if spec.optimizer == "muon":
        return MuonAdamW.of(model, spec.learning_rate, betas=betas, weight_decay=spec.weight_decay)
    if spec.optimizer == "onebit-adam":
        return OneBitAdam(
            model.parameters(),
            spec.learning_rate,
            betas=betas,
            weight_decay=spec.weight_decay,
            least_warmup=max(2 * spec.warmup_steps, 1),
        )
    return torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=betas, weight_decay=spec.weight_decay)
