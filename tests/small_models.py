"""Models of a few hundred parameters that two processes make alike, and a loss of each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from legion_p2p.tensor.flatten import digest

WIDTH = 6


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def squares(model: nn.Module) -> Tensor:
    return model(torch.ones(2, WIDTH)).square().mean()


def in_module(seed: int) -> nn.Module:
    """`linear`, with the names that it has as `model` of a module."""
    return nn.ModuleDict({"model": linear(seed)})


def gpt2(seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )


def language_loss(model: nn.Module) -> Tensor:
    row = torch.arange(8)[None]
    loss: Tensor = model(input_ids=row, labels=row).loss
    return loss


MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable[[Any], Tensor]]] = {
    "linear": (linear, squares),
    "in a module": (in_module, lambda module: squares(module["model"])),
    "gpt2": (gpt2, language_loss),
}


def parameters_digest(model: nn.Module) -> str:
    return digest(torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])).hex()
