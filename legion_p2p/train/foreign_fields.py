"""Reading the fields of a foreign config.json, naming what is wrong."""

from collections.abc import Mapping
from typing import Any

from legion_p2p.errors import IncompatibleModelError

_NAMES_OF_NO_EFFECT = """
_attn_implementation _name_or_path architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder label2id length_penalty max_length
min_length n_ctx no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
output_hidden_states output_past output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values
reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
typical_p use_bfloat16 use_cache use_return_dict
"""
OF_NO_EFFECT = frozenset(_NAMES_OF_NO_EFFECT.split())
"""Fields that say how text is generated, how training began, or how the file came to be: not what the model computes."""


def whole_field(said: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 1. Raises: IncompatibleModelError."""
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        told = "missing" if name not in said else in_short(value)
        raise IncompatibleModelError(f"{name} is {told}; a whole number of at least 1 is expected")
    return value


def number_field(said: Mapping[str, Any], name: str, default: float) -> float:
    """A number, or the default where the field is missing. Raises: IncompatibleModelError."""
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise IncompatibleModelError(f"{name} is {in_short(value)}; a number is expected")
    return float(value)


def check_known(said: Mapping[str, Any], known: set[str]) -> None:
    """That no other field says anything. Raises: IncompatibleModelError, naming one that does."""
    unknown = sorted(name for name, value in said.items() if name not in known and value is not None)
    if unknown:
        raise IncompatibleModelError(
            f"{in_short(unknown[0])} is not known here, so what it changes would be lost; remove it if it changes nothing"
        )


def in_short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:58]}.."
