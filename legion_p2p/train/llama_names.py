"""The built-in GPT in the names of `transformers.LlamaForCausalLM`, where it has LLaMA's architecture.

LLaMA has three matrices for queries, keys and values, which are one here, one below the other.
"""

import re
from collections.abc import Iterator

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.train.foreign_names import ForeignParam, config_of, gpt_params
from legion_p2p.train.gpt_config import GPTConfig

_PARTS = (
    (r"embedding\.weight", "model.embed_tokens.weight"),
    (r"blocks\.(\d+)\.attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blocks\.(\d+)\.attention\.out\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp\.gate\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (r"blocks\.(\d+)\.mlp\.inner\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (r"blocks\.(\d+)\.mlp\.out\.weight", r"model.layers.\1.mlp.down_proj.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"head\.weight", "lm_head.weight"),
)
_FUSED = re.compile(r"blocks\.(\d+)\.attention\.qkv\.weight")


def llama_layout(spec: RunSpec) -> tuple[GPTConfig, tuple[ForeignParam, ...]] | None:
    """The model's configuration, and its parameters there, in the run's order. None, where the run trains no such model."""
    config = config_of(spec)
    if config is None or not _is_llama(config) or tuple(gpt_params(config)) != spec.params:
        return None
    return config, tuple(there for param in spec.params for there in _renamed(param, config))


def _is_llama(config: GPTConfig) -> bool:
    own = (config.positions, config.norm, config.mlp, config.bias, config.dropout)
    return own == ("rotary", "rms", "swiglu", False, 0.0)


def _renamed(param: ParamSpec, config: GPTConfig) -> Iterator[ForeignParam]:
    if fused := _FUSED.fullmatch(param.name):
        at = 0
        for part, n_rows in (("q", config.width), ("k", config.kv_width), ("v", config.kv_width)):
            name = f"model.layers.{fused[1]}.self_attn.{part}_proj.weight"
            yield ForeignParam(name, (n_rows, config.width), param, rows=(at, at + n_rows))
            at += n_rows
        return
    there = next(found.expand(name) for pattern, name in _PARTS if (found := re.fullmatch(pattern, param.name)))
    yield ForeignParam(there, param.shape, param)
