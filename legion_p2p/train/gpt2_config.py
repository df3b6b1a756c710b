"""config.json of `transformers.GPT2LMHeadModel`: written for others, and read with every field understood or refused by name.

A field that says something else than the built-in GPT does changes what the model computes: to import it all the same would
give a model that is silently another one.
"""

from collections.abc import Mapping
from typing import Any

from legion_p2p.errors import IncompatibleModelError
from legion_p2p.train.gpt import GPTConfig

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

_NAMES_OF_NO_EFFECT = """
_attn_implementation _name_or_path architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder label2id length_penalty max_length
min_length n_ctx no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
output_hidden_states output_past output_scores pad_token_id prefix problem_type remove_invalid_values
reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
typical_p use_bfloat16 use_cache use_return_dict
"""
_OF_NO_EFFECT = frozenset(_NAMES_OF_NO_EFFECT.split())
"""Fields that say how text is generated, how training began, or how the file came to be: not what the model computes."""


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
            raise IncompatibleModelError(f"{name} is {_short(value)}; the built-in GPT has {_short(allowed[0])}")
    if said.get("model_type") is None:
        raise IncompatibleModelError("model_type is missing; it would say gpt2")
    shape = {name: _whole(said, name) for name in _SHAPE}
    inner = said.get("n_inner")
    if inner not in (None, 4 * shape["n_embd"]):
        raise IncompatibleModelError(f"n_inner is {_short(inner)}; the built-in GPT has 4 * n_embd = {4 * shape['n_embd']}")
    tied = said.get("tie_word_embeddings", True)
    if not isinstance(tied, bool) or (not tied and not has_head):
        raise IncompatibleModelError(f"tie_word_embeddings is {_short(tied)}, and the file has no lm_head.weight")
    known = {*_ONLY, *_SHAPE, *_DROPOUTS, "n_inner", "tie_word_embeddings"}
    unknown = sorted(name for name, value in said.items() if name not in known | _OF_NO_EFFECT and value is not None)
    if unknown:
        raise IncompatibleModelError(
            f"{_short(unknown[0])} is not known here, so what it changes would be lost; remove it if it changes nothing"
        )
    return GPTConfig(
        n_layer=shape["n_layer"], n_head=shape["n_head"], width=shape["n_embd"], context=shape["n_positions"],
        vocab_size=shape["vocab_size"], bias=True, dropout=_dropout(said), tied=tied,
    )  # fmt: skip


def _whole(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        told = "missing" if name not in said else f"{_short(value)}"
        raise IncompatibleModelError(f"{name} is {told}; a whole number of at least 1 is expected")
    return value


def _dropout(said: Mapping[str, Any]) -> float:
    values = {name: said.get(name, 0.1) for name in _DROPOUTS}  # 0.1 is what transformers takes where nothing is said
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise IncompatibleModelError(f"{name} is {_short(value)}; a number from 0 to below 1 is expected")
    if len(set(values.values())) > 1:
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        raise IncompatibleModelError(f"{told}: the built-in GPT has one dropout for all three; make them equal")
    return float(values["resid_pdrop"])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:58]}.."
