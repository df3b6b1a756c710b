"""What a trainer must know of a model that predicts tokens, whoever built it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from legion_p2p.train.gpt import GPT, IGNORED_TARGET


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A module, and how tokens go through it."""

    module: nn.Module
    context: int
    """Tokens in a window that it is trained on."""
    vocab_size: int
    logits: Callable[[Tensor], Tensor]
    """Of the next token at every position: int64 (batch, tokens) to (batch, tokens, vocabulary)."""
    recompute_activations: Callable[[], None]
    """From now on, keep only what lies between layers for the backward pass, and compute the rest again. Raises: UsageError."""

    @classmethod
    def of_gpt(cls, gpt: GPT) -> Self:
        """The built-in model."""
        return cls(gpt, gpt.config.context, gpt.config.vocab_size, lambda idx: gpt(idx)[0], gpt.recompute_activations)

    def loss(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean cross entropy in nats per token; targets of -1 do not count."""
        logits_BTV = self.logits(idx_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED_TARGET)
