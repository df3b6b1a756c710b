"""The shape of the built-in GPT: its options, and sizes by name."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from legion_p2p.errors import ConfigError, UsageError

GPT2_VOCAB = 50257
LLAMA_VOCAB = 32_000


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Two models with equal configs have the same parameters in the same order."""

    n_layer: int
    n_head: int
    width: int
    context: int
    vocab_size: int = 256
    positions: Literal["learned", "rotary"] = "learned"
    """Rotary (Su et al., 2104.09864) has no parameters and needs an even head width."""
    bias: bool = False
    """In linear layers and LayerNorm, as GPT-2 has it. Without: a little faster and no worse."""
    dropout: float = 0.0
    tied: bool = True
    """Use the embedding as output matrix: vocab_size * width parameters less to send."""
    norm: Literal["layer", "rms"] = "layer"
    """RMSNorm (Zhang and Sennrich, 1910.07467) has no bias, and costs less."""
    norm_eps: float = 1e-5
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """SwiGLU has three matrices instead of two."""
    mlp_width: int = 0
    """Of the inner layer; 0: 4 * width, or with SwiGLU, for about as many parameters, 8/3 * width, rounded up to whole 256."""
    n_kv_head: int = 0
    """Heads of keys and values, each for n_head / n_kv_head heads of queries; 0: one for each."""
    rope_base: float = 10_000.0
    """Of the angles of rotary positions. Higher: distances are told apart over longer contexts."""

    def __post_init__(self) -> None:
        smallest = min(self.n_layer, self.n_head, self.width, self.context, self.vocab_size)
        if smallest < 1 or self.width % self.n_head:
            raise ConfigError(f"{self}: all sizes must be 1 or more, and width a multiple of n_head")
        if self.positions not in ("learned", "rotary"):
            raise ConfigError(f"positions {self.positions!r}, must be learned or rotary")
        if self.positions == "rotary" and self.width // self.n_head % 2:
            raise ConfigError(f"heads of width {self.width // self.n_head}, rotary positions need an even one")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout}, must be 0 or more and less than 1")
        if self.norm not in ("layer", "rms") or self.mlp not in ("gelu", "swiglu"):
            raise ConfigError(f"norm {self.norm!r}, mlp {self.mlp!r}: must be layer or rms, and gelu or swiglu")
        if self.n_kv_head < 0 or self.n_head % self.kv_heads:
            raise ConfigError(f"n_kv_head {self.n_kv_head}, must be 0 or divide n_head, which is {self.n_head}")
        if self.mlp_width < 0 or not (self.norm_eps > 0 and self.rope_base > 1):
            told = f"mlp_width {self.mlp_width}, norm_eps {self.norm_eps}, rope_base {self.rope_base}"
            raise ConfigError(f"{told}: must be 0 or more, above 0, and above 1")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def kv_width(self) -> int:
        """Of all keys, and of all values."""
        return self.width // self.n_head * self.kv_heads

    @property
    def inner_width(self) -> int:
        """Of the layer inside each perceptron."""
        if self.mlp_width:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // (3 * 256)) * 256


def _llama(n_layer: int, n_kv_head: int, width: int, mlp_width: int, context: int) -> GPTConfig:
    return GPTConfig(
        n_layer, 32, width, context, LLAMA_VOCAB, positions="rotary", tied=False, norm="rms", mlp="swiglu", mlp_width=mlp_width,
        n_kv_head=n_kv_head,
    )  # fmt: skip


PRESETS = {
    "xxs": GPTConfig(n_layer=2, n_head=3, width=96, context=64),  # 0.25M parameters
    "s": GPTConfig(n_layer=4, n_head=4, width=128, context=128),  # 0.84M
    "m": GPTConfig(n_layer=6, n_head=8, width=256, context=256),  # 4.9M
    "l": GPTConfig(n_layer=8, n_head=8, width=512, context=512),  # 26M
    "gpt2": GPTConfig(n_layer=12, n_head=12, width=768, context=1024, vocab_size=GPT2_VOCAB, bias=True),  # 124M
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, width=1024, context=1024, vocab_size=GPT2_VOCAB, bias=True),  # 355M
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, width=1280, context=1024, vocab_size=GPT2_VOCAB, bias=True),  # 774M
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, width=1600, context=1024, vocab_size=GPT2_VOCAB, bias=True),  # 1.56B
    "llama-1b": _llama(n_layer=22, n_kv_head=4, width=2048, mlp_width=5632, context=2048),  # 1.10B, as TinyLlama
    "llama-7b": _llama(n_layer=32, n_kv_head=32, width=4096, mlp_width=11008, context=4096),  # 6.74B, as LLaMA 2
}

SMALLEST = 10_000_000  # with fewer, the tokens of GPT-2 leave next to nothing for the layers
DEPTHS = {12: 125e6, 24: 760e6, 32: 4e9, 40: 13e9, 48: 30e9, 64: 66e9, 96: 175e9}
"""Layers, and sizes at which they are usual: GPT-3 (Brown et al., 2005.14165, table 2.1), OPT (Zhang et al., 2205.01068)."""


def preset(name: str, **changes: Any) -> GPTConfig:
    """The config of that name, changed.

    Raises: ConfigError, if there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model {name!r}, known are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


def of_size(n_params: float) -> GPTConfig:
    """A config of about that many parameters, with GPT-2's tokens: as deep as published models of that size, as wide as needed.

    Raises: UsageError, if it is less than SMALLEST.
    """
    if not n_params >= SMALLEST:
        raise UsageError(f"a model of {n_params:.0f} parameters, at least {SMALLEST}: for smaller ones there are presets")
    n_layer = min(DEPTHS, key=lambda depth: abs(math.log(n_params / DEPTHS[depth])))
    head = 64 if n_params < 1e9 else 128
    # 12 n_layer D^2 + (V + T) D = n
    context = 1024 if n_params < 1e9 else 2048
    linear = (GPT2_VOCAB + context) / (24 * n_layer)
    width = math.sqrt(linear**2 + n_params / (12 * n_layer)) - linear
    n_head = max(1, round(width / head))
    return GPTConfig(n_layer, n_head, n_head * head, context, vocab_size=GPT2_VOCAB)
