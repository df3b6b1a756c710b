"""A compact GPT: what legion_p2p trains where users bring no model of their own.

GPT-2's shape (Radford et al. 2019) in the manner of nanoGPT: pre-LayerNorm blocks, GELU (tanh), output matrix tied to the
embedding; or LLaMA's (Touvron et al., 2302.13971 and 2307.09288): RMSNorm, SwiGLU, rotary positions, fewer heads of keys and
values than of queries. Sizes and initialization of the presets `xxs`, `s` and `m` are those of the reference work, so that
figures compare.
"""

# Shape suffixes: B = batch, T = time (tokens), D = width, H = heads, G = heads of keys and values, E = width of a head,
# V = vocabulary.

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from legion_p2p.core.plan import ParamSpec
from legion_p2p.errors import ConfigError
from legion_p2p.train.gpt_config import GPTConfig, preset

INIT_STD = 0.02
IGNORED_TARGET = -1


class GPT(nn.Module):
    """Predicts the next token. Initialized from `generator` alone: the global random state is neither read nor moved."""

    rotation: Tensor

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None, *, shapes_only: bool = False) -> None:
        """Without a generator: that of seed 0, so that peers which agree on a config agree on the start, too.

        With `shapes_only` it stays on the device "meta": it takes no memory, and computes nothing.
        """
        super().__init__()
        self.config = config
        self._recomputes = False
        # torch's layers draw random weights from the global state when they are made; on "meta" there is nothing to fill
        with torch.device("meta"):
            self.embedding = _embedding(config.vocab_size, config.width)
            if config.positions == "learned":
                self.position = _embedding(config.context, config.width)
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.norm = _norm(config)
            if not config.tied:
                self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.to(torch.float32)  # whatever the process's default is: peers that agree on a config start from the same bits
        if shapes_only:
            return
        self.to_empty(device="cpu")
        self._initialize(generator or torch.Generator().manual_seed(0))
        if config.positions == "rotary":
            self.register_buffer("rotation", _rotation(config), persistent=False)

    @classmethod
    def from_preset(cls, name: str, generator: torch.Generator | None = None, **changes: Any) -> "GPT":
        """One of PRESETS, with `changes` to its config, such as vocab_size.

        Raises: ConfigError, if there is none of that name, or the changes do not fit.
        """
        return cls(preset(name, **changes), generator)

    def recompute_activations(self) -> None:
        """From now on, keep only the input of each block for the backward pass, which computes the block again."""
        self._recomputes = True

    @property
    def n_params(self) -> int:
        """All of them, embeddings included; tied ones once."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, idx_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V), and with targets the mean cross entropy in nats per token; targets of -1 do not count."""
        logits_BTV = self._to_logits(self._hidden(idx_BT))
        if targets_BT is None:
            return logits_BTV, None
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED_TARGET)
        return logits_BTV, loss

    @torch.no_grad()
    def generate(
        self,
        idx_BT: Tensor,
        n: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`idx_BT` (T >= 1) with `n` more tokens. Temperature 0 always takes the likeliest. Sees the last `context` tokens.

        Leaves the model's train/eval mode as it is: call eval() before, if there is dropout.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ConfigError(f"temperature {temperature}, top_k {top_k}: must be 0 or more, and 1 or more")
        for _ in range(n):
            last_BD = self._hidden(idx_BT[:, -self.config.context :])[:, -1]
            logits_BV = self._to_logits(last_BD).float()
            if temperature == 0:
                next_B1 = logits_BV.argmax(dim=-1, keepdim=True)
            else:
                if top_k is not None and top_k < self.config.vocab_size:
                    weakest_B1 = logits_BV.topk(top_k).values[:, -1:]
                    logits_BV = logits_BV.masked_fill(logits_BV < weakest_B1, -math.inf)
                next_B1 = torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator)
            idx_BT = torch.cat([idx_BT, next_B1], dim=1)
        return idx_BT

    def _hidden(self, idx_BT: Tensor) -> Tensor:
        n_tokens = idx_BT.shape[1]
        if n_tokens > self.config.context:
            raise ConfigError(f"{n_tokens} tokens, the model's context is {self.config.context}")
        x_BTD = self.embedding(idx_BT)
        rotation = None
        if self.config.positions == "learned":
            x_BTD = x_BTD + self.position.weight[:n_tokens]
        else:
            rotation = self.rotation[:, :n_tokens]
        x_BTD = self.dropout(x_BTD)
        recomputes = self._recomputes and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x_BTD = checkpoint(block, x_BTD, rotation, use_reentrant=False) if recomputes else block(x_BTD, rotation)
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD

    def _to_logits(self, x: Tensor) -> Tensor:
        # tied by use, not by a second name: so each parameter is listed once, wherever parameters are counted or flattened
        return F.linear(x, self.embedding.weight if self.config.tied else self.head.weight)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        # each block adds twice to the residual stream: its variance should not grow with depth (GPT-2, section 2.3)
        output_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.normal_(0.0, output_std if name.endswith("out.weight") else INIT_STD, generator=generator)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)  # LayerNorm weights; all biases


class Block(nn.Module):
    """Attention, then a two-layer perceptron; each adds to what it reads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotation: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation)
        y_BTD: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return y_BTD


class Attention(nn.Module):
    """Causal multi-head self-attention. Heads of queries may share one of keys and values (Ainslie et al., 2305.13245)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_heads = (config.n_head, config.kv_heads, config.kv_heads)
        self.p_dropout = config.dropout
        self.qkv = nn.Linear(config.width, config.width + 2 * config.kv_width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotation: Tensor | None) -> Tensor:
        B, T, D = x_BTD.shape
        heads_BTHE = self.qkv(x_BTD).view(B, T, sum(self.n_heads), -1)
        q_BHTE, k_BGTE, v_BGTE = heads_BTHE.transpose(1, 2).split(self.n_heads, dim=1)
        if rotation is not None:
            q_BHTE, k_BGTE = _rotate(q_BHTE, rotation), _rotate(k_BGTE, rotation)
        k_BHTE, v_BHTE = self._for_all_queries(k_BGTE), self._for_all_queries(v_BGTE)
        p_dropout = self.p_dropout if self.training else 0.0
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, dropout_p=p_dropout, is_causal=True)
        y_BTD: Tensor = self.dropout(self.out(y_BHTE.transpose(1, 2).reshape(B, T, D)))
        return y_BTD

    def _for_all_queries(self, x_BGTE: Tensor) -> Tensor:
        n_queries, n_kv, _ = self.n_heads
        return x_BGTE if n_queries == n_kv else x_BGTE.repeat_interleave(n_queries // n_kv, dim=1)


class MLP(nn.Module):
    """Wider inside; with GELU, or gated (SwiGLU: Shazeer, 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.is_gated = config.mlp == "swiglu"
        if self.is_gated:
            self.gate = nn.Linear(config.width, config.inner_width, bias=config.bias)
        self.inner = nn.Linear(config.width, config.inner_width, bias=config.bias)
        self.out = nn.Linear(config.inner_width, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner = self.inner(x_BTD)
        inner = F.silu(self.gate(x_BTD)) * inner if self.is_gated else F.gelu(inner, approximate="tanh")
        y_BTD: Tensor = self.dropout(self.out(inner))
        return y_BTD


def _embedding(n: int, width: int) -> nn.Embedding:
    """On "meta", with weights that are there: to draw its own there, torch loads its compiler, which takes a second and 70 MB."""
    return nn.Embedding(n, width, _weight=torch.empty(n, width, dtype=torch.float32, device="meta"))


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


def shapes_of(config: GPTConfig) -> tuple[ParamSpec, ...]:
    """The parameters of such a model, in order, as a run's specification names them. None of them is made."""
    return tuple(ParamSpec(name, tuple(p.shape)) for name, p in GPT(config, shapes_only=True).named_parameters())


def _rotation(config: GPTConfig) -> Tensor:
    """Cosines and sines of the angles of each position and frequency: (2, T, E / 2)."""
    half = config.width // config.n_head // 2
    frequency = config.rope_base ** (-torch.arange(half, dtype=torch.float32, device="cpu") / half)
    angle = torch.outer(torch.arange(config.context, dtype=torch.float32, device="cpu"), frequency)
    return torch.stack([angle.cos(), angle.sin()])


def _rotate(x_BHTE: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (i, i + E / 2) by its angle."""
    cos, sin = rotation.to(x_BHTE.dtype)
    a, b = x_BHTE.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
