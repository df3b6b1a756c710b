"""How good a model is: its loss on held-out text."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.batches import validation_batches, windows_at_once
from legion_p2p.train.corpus import Corpus, decode
from legion_p2p.train.gpt import GPT
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.parameters import trainable

EVAL_WINDOWS = 96  # while training; at the end it is FINAL_EVAL_WINDOWS
FINAL_EVAL_WINDOWS = 384


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    corpus: Corpus,
    n_windows: int,
    device: str = "cpu",
    precise: contextlib.AbstractContextManager[Any] | None = None,
) -> float:
    """Mean loss in nats per token over evenly spaced windows of the held-out text, computed within `precise`."""
    total, n = 0.0, 0
    context = model.context
    with evaluating(model.module), precise or contextlib.nullcontext():
        for x, y in validation_batches(corpus.validation, context, n_windows, windows_at_once(context)):
            loss = model.loss(x.to(device), y.to(device))
            total += float(loss) * len(x)
            n += len(x)
    return total / n


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, and back."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def load_flat(module: nn.Module, flat: Tensor) -> None:
    """Put a run's flat parameters into a model of the same configuration."""
    FlatView(trainable(module)).assign_slice(0, flat)


def sample_text(gpt: GPT, seed: int, prompt: str, n: int, temperature: float = 0.8, top_k: int = 40) -> str:
    """Some text as the built-in model continues `prompt`, where its tokens are bytes."""
    if gpt.config.vocab_size != 256:
        return ""
    device = next(gpt.parameters()).device
    idx = torch.tensor([list(prompt.encode())], dtype=torch.int64, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    return decode(gpt.generate(idx, n, temperature=temperature, top_k=top_k, generator=generator)[0].tolist())
