"""config.json of `transformers.GPT2LMHeadModel`: written for others, and read with every field understood or refused by name.

A field that says something else than the built-in GPT does changes what the model computes: to import it all the same would
give a model that is silently another one.
"""

from collections.abc import Mapping
from typing import Any

from legion_p2p.errors import IncompatibleModelError
from legion_p2p.train.foreign_fields import OF_NO_EFFECT, check_known, in_short, whole_field
from legion_p2p.train.gpt_config import GPTConfig

_GPT2_TEXT_VOCABULARY = 50257
_END_OF_TEXT = 50256
_SHAPE = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "auto_map": (None,),
}
"""Fields that change what the model computes, and the values that mean what the built-in GPT does."""


def gpt2_config(config: GPTConfig) -> dict[str, Any]:
    """The config.json that transformers reads."""
    end = _END_OF_TEXT if config.vocab_size == _GPT2_TEXT_VOCABULARY else None
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": config.vocab_size,
        "n_positions": config.context, "n_embd": config.width, "n_layer": config.n_layer, "n_head": config.n_head,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": 0.0 + config.dropout,
        "bos_token_id": end, "eos_token_id": end, "dtype": "float32", "torch_dtype": "float32",
    }  # fmt: skip


def config_from_gpt2(said: Mapping[str, Any], *, has_head: bool) -> GPTConfig:
    """The built-in GPT's configuration for a GPT-2's. `has_head`: the file has an output matrix of its own.

    Raises: IncompatibleModelError, naming the field that is missing, unknown, or says something that the built-in GPT cannot do;
    ConfigError.
    """
    for name, allowed in _ONLY.items():
        value = said.get(name, allowed[0])
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise IncompatibleModelError(f"{name} is {in_short(value)}; the built-in GPT has {in_short(allowed[0])}")
    if said.get("model_type") is None:
        raise IncompatibleModelError("model_type is missing; it would say gpt2")
    shape = {name: whole_field(said, name) for name in _SHAPE}
    inner = said.get("n_inner")
    if inner not in (None, 4 * shape["n_embd"]):
        raise IncompatibleModelError(f"n_inner is {in_short(inner)}; the built-in GPT has 4 * n_embd = {4 * shape['n_embd']}")
    tied = said.get("tie_word_embeddings", True)
    if not isinstance(tied, bool) or (not tied and not has_head):
        raise IncompatibleModelError(f"tie_word_embeddings is {in_short(tied)}, and the file has no lm_head.weight")
    known = {*_ONLY, *_SHAPE, *_DROPOUTS, "n_inner", "tie_word_embeddings"}
    check_known(said, known | OF_NO_EFFECT)
    return GPTConfig(
        n_layer=shape["n_layer"], n_head=shape["n_head"], width=shape["n_embd"], context=shape["n_positions"],
        vocab_size=shape["vocab_size"], bias=True, dropout=_dropout(said), tied=tied,
    )  # fmt: skip


def _dropout(said: Mapping[str, Any]) -> float:
    values = {name: said.get(name, 0.1) for name in _DROPOUTS}  # 0.1 is what transformers takes where nothing is said
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise IncompatibleModelError(f"{name} is {in_short(value)}; a number from 0 to below 1 is expected")
    if len(set(values.values())) > 1:
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        raise IncompatibleModelError(f"{told}: the built-in GPT has one dropout for all three; make them equal")
    return float(values["resid_pdrop"])
