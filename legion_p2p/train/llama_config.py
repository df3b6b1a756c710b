"""config.json of `transformers.LlamaForCausalLM`: written for others, and read with every field understood or refused by name.

As in train/gpt2_config.py: a field that says something else than the built-in GPT does would make it silently another model.
"""

from collections.abc import Mapping
from typing import Any

from legion_p2p.errors import IncompatibleModelError
from legion_p2p.train.foreign_fields import OF_NO_EFFECT, check_known, in_short, number_field, whole_field
from legion_p2p.train.gpt_config import GPTConfig

_SHAPE = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
_READ = ("model_type", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_parameters", "tie_word_embeddings")
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "attention_dropout": (0.0,),
    "rope_scaling": (None,), "partial_rotary_factor": (1.0,), "quantization_config": (None,), "auto_map": (None,),
}  # fmt: skip
"""Fields that change what the model computes, and the values that mean what the built-in GPT does."""


def llama_config(config: GPTConfig) -> dict[str, Any]:
    """The config.json that transformers reads."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context, "hidden_size": config.width, "intermediate_size": config.inner_width,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head, "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu", "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base}, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": config.tied, "bos_token_id": None, "eos_token_id": None, "dtype": "float32",
        "torch_dtype": "float32",
    }  # fmt: skip


def config_from_llama(said: Mapping[str, Any]) -> GPTConfig:
    """The built-in GPT's configuration for a LLaMA's.

    Raises: IncompatibleModelError, naming the field that is missing, unknown, or says something that the built-in GPT cannot do;
    ConfigError.
    """
    for name, allowed in _ONLY.items():
        if said.get(name, allowed[0]) not in allowed:
            raise IncompatibleModelError(f"{name} is {in_short(said[name])}; the built-in GPT has {in_short(allowed[0])}")
    check_known(said, {*_ONLY, *_SHAPE, *_READ, *OF_NO_EFFECT})
    layers, heads, width, inner, context, vocab_size = (whole_field(said, name) for name in _SHAPE)
    if said.get("head_dim") not in (None, width // heads):
        raise IncompatibleModelError(f"head_dim is {in_short(said['head_dim'])}; the built-in GPT has {width // heads}")
    kv_heads = whole_field(said, "num_key_value_heads") if said.get("num_key_value_heads") is not None else heads
    return GPTConfig(
        layers, heads, width, context, vocab_size, positions="rotary", tied=bool(said.get("tie_word_embeddings", False)),
        norm="rms", norm_eps=number_field(said, "rms_norm_eps", 1e-6), mlp="swiglu", mlp_width=inner, n_kv_head=kv_heads,
        rope_base=_rope_base(said),
    )  # fmt: skip


def _rope_base(said: Mapping[str, Any]) -> float:
    nested = said.get("rope_parameters")
    if nested is None:
        return number_field(said, "rope_theta", 10_000.0)
    if not isinstance(nested, dict) or nested.get("rope_type", "default") != "default":
        raise IncompatibleModelError(f"rope_parameters is {in_short(nested)}; the built-in GPT has rotary positions as they are")
    return number_field(nested, "rope_theta", number_field(said, "rope_theta", 10_000.0))
