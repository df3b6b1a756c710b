"""A task whose batch several processes share: each trains on its part, and together they do what one does with all of it."""

import torch
from torch import Tensor, nn

BATCH = 8
WIDTH = 24


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(1, keepdim=True)


def plain_losses(steps: int) -> list[float]:
    """Those of one process with plain torch."""
    model, losses = model_of(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        x, y = batch_of(step)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
